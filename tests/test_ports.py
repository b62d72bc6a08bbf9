"""Ports for what tests start: nobody listens there, and no other process of tests is given them."""

from __future__ import annotations

import socket
import sys

import pytest
from servers import ports


@pytest.mark.skipif(sys.platform != "linux", reason="names of ports are kept on Linux")
def test_port_is_given_once_and_only_if_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four one is listened on, one's second is, and one is another process's: one is left."""
    first = ports.free_port(4)
    monkeypatch.setattr(ports, "_FIRST", first)
    monkeypatch.setattr(ports, "_LAST", first + 5)
    for kept in ports._kept[-4:]:
        kept.close()
    others = socket.socket(socket.AF_UNIX)
    with socket.create_server(("127.0.0.1", first)), others:
        others.bind(f"\0tokenbus-test-port-{first + 1}")
        with socket.create_server(("127.0.0.1", first + 2 + ports._TO_SECOND)):
            assert ports.free_port() == first + 3
            assert not ports._keep(first + 3)
