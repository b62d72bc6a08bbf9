"""Ports for what tests start: free, and no other test's while this process lives.

They lie below those that the system gives to connections: one of these may be taken by the time
that a server, seconds later, binds it.
"""

from __future__ import annotations

import random
import socket
import sys
from contextlib import suppress

_FIRST, _LAST = 10_000, 22_000
# A node of a cluster listens on a second port, which is so much higher.
_TO_SECOND = 10_000
# Tests set the seed of the module's own draws, each process the same.
_draw = random.SystemRandom()
_kept: list[socket.socket] = []


def free_port(num_ports: int = 1) -> int:
    """Return a port that nobody listens on, of so many one after the other."""
    while True:
        first = _draw.randrange(_FIRST, _LAST - num_ports)
        ports = range(first, first + num_ports)
        if all(_is_free(port) and _is_free(port + _TO_SECOND) and _keep(port) for port in ports):
            return first


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.socket() as probe:
        probe.bind(("127.0.0.1", port))
        return True
    return False


def _keep(port: int) -> bool:
    """Take a name for the port that the system forgets with this process; False if it is taken."""
    if sys.platform != "linux":
        return True
    name = socket.socket(socket.AF_UNIX)
    try:
        name.bind(f"\0tokenbus-test-port-{port}")
    except OSError:
        name.close()
        return False
    _kept.append(name)
    return True
