"""Addresses to listen at: whether one can be had is asked before anything slow is begun."""

from __future__ import annotations

import socket


def listening_problem(host: str, port: int) -> str | None:
    """Return why nobody can listen at an address, None if somebody can; 0 is any port."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do, so that the port of one that has just ended passes.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"
    return None
