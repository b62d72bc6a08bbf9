"""The suite itself sees to it that no test reaches another machine."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from loopback import sitecustomize as contacts
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Callable

# An address that belongs to nobody (RFC 5737), and ways to it.
ELSEWHERE = ("192.0.2.1", 80)
CONTACTS: dict[str, Callable[[], object]] = {
    "a connection": lambda: socket.create_connection(ELSEWHERE, 1),
    "a datagram": lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"x", ELSEWHERE),
    "a connection by name": lambda: socket.create_connection(("example.com", 80), 1),
    "a name that is looked up": lambda: socket.gethostbyname("example.com"),
}


@pytest.mark.parametrize("contact", CONTACTS)
def test_contact_beyond_the_loopback_is_refused(contact: str) -> None:
    """Whatever is sent or asked, the error says why, and the test would have failed."""
    with pytest.raises(OSError, match="no test goes beyond the loopback"):
        CONTACTS[contact]()
    assert contacts.take_notes().count("\n") == 1


def test_contact_of_a_child_is_noted_though_nobody_hears_of_it() -> None:
    """A child of a child that swallows the error fails its test all the same."""
    inner = f"import socket\ntry: socket.create_connection({ELSEWHERE}, 1)\nexcept OSError: pass"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    subprocess.run([sys.executable, "-c", outer], check=True, timeout=PATIENCE_S)
    assert "socket.connect of 192.0.2.1" in contacts.take_notes()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "localhost", "::1"])
def test_this_machine_is_reached(host: str) -> None:
    """The loopback under each of its names, where nobody listens."""
    kind = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(kind) as bound, socket.socket(kind) as asking:
        bound.bind(("::1" if ":" in host else "127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            asking.connect((host, bound.getsockname()[1]))
    assert not contacts.take_notes()
