"""No contact beyond the loopback: refused in the process of the tests and in Python they start.

The folder of this file is on the path of each child, which imports it as it starts. A refusal is
noted in a file of the run, so that its test fails whatever a program makes of the error. pip alone
goes out: it fetches packages, and the models and tokenizers in these.
"""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path

_NOTES = "TOKENBUS_TEST_CONTACTS"
# Events of the interpreter with an address at their end, and those with a name to look up.
_SENDS = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_LOOK_UPS = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}


def watch(notes: Path) -> None:
    """Refuse contacts of this process and of its children, and note them in a file."""
    os.environ[_NOTES] = str(notes)
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH")])
    )
    sys.addaudithook(_refuse)


def take_notes() -> str:
    """Return what was refused since the last call, a line each."""
    notes = Path(os.environ[_NOTES])
    if not notes.exists():
        return ""
    said = notes.read_text()
    notes.unlink()
    return said


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event in _SENDS:
        address = args[1]
        # Others are paths and numbers of sockets on this machine.
        host = address[0] if isinstance(address, tuple) else None
    elif event in _LOOK_UPS:
        host = args[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if isinstance(host, str) and not _is_near(host, is_asked=event in _LOOK_UPS):
        note = f"{event} of {host} by {os.getpid()}: {' '.join(sys.orig_argv)[:200]}"
        with open(os.environ[_NOTES], "a") as notes:
            print(note, file=notes)
        raise OSError(errno.ENETUNREACH, f"no test goes beyond the loopback: {note}")


def _is_near(host: str, *, is_asked: bool) -> bool:
    """Tell whether a host is this one; a number that is looked up is answered here as well."""
    import ipaddress

    if host in ("", "localhost"):
        return True
    try:
        number = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    number = getattr(number, "ipv4_mapped", None) or number
    return is_asked or number.is_loopback or number.is_unspecified


if _NOTES in os.environ and "pip" not in sys.orig_argv:
    sys.addaudithook(_refuse)
