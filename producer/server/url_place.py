"""Places in server URLs: hosts and their ports, paths, databases; decoded and checked.

Errors name the part and quote nothing of it: what is wrong with a URL is often its password.
"""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from urllib.parse import unquote

from tokenbus.producer.server.url_options import decoded

# What Linux takes; others take a few less.
_MAX_SOCKET_BYTES = 107


def read_address(text: str, default_port: int) -> tuple[str, int]:
    """Read `host[:port]`, an IPv6 host in brackets. Raises: ValueError."""
    match = re.fullmatch(r"(\[[^\[\]]+\]|[^:\[\]]+)(?::([0-9]{0,5}))?", text)
    if match is None and re.fullmatch(r"[0-9A-Fa-f:.%]*:[0-9A-Fa-f:.%]*:[0-9A-Fa-f:.%]*", text):
        raise ValueError("an IPv6 address stands in brackets: redis://[::1]:6379")
    if match is None:
        raise ValueError("it names no host, or its port is no number")
    port = int(match[2] or default_port)
    if not 1 <= port <= 65_535:
        raise ValueError("its port is none from 1 to 65535")
    host = decoded("its host", match[1].strip("[]"))
    if text.startswith("["):
        _check_ipv6(host)
    else:
        _check_name(host)
    return host, port


def read_database(text: str) -> int:
    """Read the number of a database, 0 where there is none. Raises: ValueError."""
    if re.fullmatch(r"[0-9]{0,9}", text) is None:
        raise ValueError("the number of its database is none: redis://host:6379/0")
    return int(text or 0)


def read_path(text: str) -> Path:
    """Decode a path, whose bytes need not be UTF-8. Raises: ValueError."""
    found = unquote(text, errors="surrogateescape")
    if "\0" in found:
        raise ValueError("its path holds a NUL")
    if found.startswith("/~"):
        raise ValueError("its path begins at the root, where ~ is no home; write the home itself")
    return Path(found)


def read_socket(text: str) -> Path:
    """Decode the path of a socket. Raises: ValueError."""
    found = read_path(text)
    if len(os.fsencode(found)) > _MAX_SOCKET_BYTES:
        raise ValueError(f"its path has more than the {_MAX_SOCKET_BYTES} bytes of a socket's")
    return found


def _check_ipv6(host: str) -> None:
    is_address = True
    try:
        ipaddress.IPv6Address(host)
    except ValueError:
        is_address = False
    if not is_address:
        raise ValueError("its host in brackets is no IPv6 address")


def _check_name(host: str) -> None:
    """Refuse what no resolver can be asked for. Raises: ValueError."""
    is_name = re.fullmatch(r"[\w.-]+", host) is not None
    try:
        host.encode("idna")
    except UnicodeError:
        is_name = False
    if not is_name:
        raise ValueError("its host is no host name")
