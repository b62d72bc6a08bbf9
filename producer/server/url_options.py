"""Options of a server URL: which ones there are for each scheme, and what they may hold."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    Reader = Callable[[str], Any]


def decoded(name: str, text: str) -> str:
    """Decode the percent signs of a part of a URL. Raises: ValueError that quotes nothing."""
    problem = ""
    try:
        return unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        problem = f"{name} is no UTF-8 once it is decoded; a percent sign is written %25"
    raise ValueError(problem)


def _text(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _file(value: str) -> str:
    if "\0" in value:
        raise ValueError("must not hold a NUL")
    return _text(value)


def _whole(low: int, high: int) -> Reader:
    def read(value: str) -> int:
        if re.fullmatch(r"[0-9]{1,10}", value) is None or not low <= int(value) <= high:
            raise ValueError(f"has to be a whole number from {low} to {high}")
        return int(value)

    return read


def _seconds(value: str) -> float:
    is_number = re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) is not None
    if not is_number or not math.isfinite(float(value)) or float(value) <= 0:
        raise ValueError("has to be a number of seconds above 0")
    return float(value)


def _flag(value: str) -> bool:
    known = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if value.lower() not in known:
        raise ValueError("has to be true or false")
    return known[value.lower()]


def _cert_reqs(value: str) -> str:
    if value not in ("none", "optional", "required"):
        raise ValueError("has to be none, optional or required")
    return value


# Those that are ours; all others are redis-py's.
_OWN: dict[str, Reader] = {
    # The file that holds the password, read anew for every connection.
    "password_file": _file,
    # Take a server that may evict jobs when its memory is full.
    "allow_eviction": _flag,
}
_OF_CONNECTIONS: dict[str, Reader] = {
    "username": _text,
    "password": _text,
    "client_name": _text,
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
    "health_check_interval": _whole(0, 86_400),
    "max_connections": _whole(1, 1_000_000),
}
_OF_DATABASES: dict[str, Reader] = {"db": _whole(0, 2**31 - 1)}
_OF_TCP: dict[str, Reader] = {"socket_keepalive": _flag}
_OF_TLS: dict[str, Reader] = {
    "ssl_ca_certs": _file,
    "ssl_ca_data": _text,
    "ssl_certfile": _file,
    "ssl_keyfile": _file,
    "ssl_cert_reqs": _cert_reqs,
    "ssl_check_hostname": _flag,
}
_OF_SENTINELS: dict[str, Reader] = {
    "sentinel_username": _text,
    "sentinel_password": _text,
    "sentinel_password_file": _file,
}

OPTIONS: dict[str, dict[str, Reader]] = {
    "redis": _OWN | _OF_CONNECTIONS | _OF_DATABASES | _OF_TCP,
    "rediss": _OWN | _OF_CONNECTIONS | _OF_DATABASES | _OF_TCP | _OF_TLS,
    "unix": _OWN | _OF_CONNECTIONS | _OF_DATABASES,
    "redis+cluster": _OWN | _OF_CONNECTIONS | _OF_TCP,
    "rediss+cluster": _OWN | _OF_CONNECTIONS | _OF_TCP | _OF_TLS,
    "redis+sentinel": _OWN | _OF_SENTINELS,
    "rediss+sentinel": _OWN | _OF_SENTINELS | _OF_TLS,
    "embedded": {},
}


def read_options(scheme: str, query: str) -> dict[str, Any]:
    """Read the options of a URL. Raises: ValueError that names the option, never a value."""
    known, found = OPTIONS[scheme], dict[str, Any]()
    for pair in query.split("&") if query else ():
        name, mark, value = pair.partition("=")
        if name not in known:
            raise ValueError(_unknown(scheme, name if mark else "", found))
        if name in found:
            raise ValueError(f"its option {name} is given twice")
        problem = ""
        try:
            found[name] = known[name](decoded("its value", value))
        except ValueError as error:
            problem = str(error)
        if problem:
            raise ValueError(f"its option {name} {problem}")
    return found


def of_redis_py(options: dict[str, Any], *, is_tls: bool) -> dict[str, Any]:
    """Return the options that go to redis-py.

    Over TLS the name of the host is checked unless the certificate is not checked at all.
    """
    given = {name: value for name, value in options.items() if name not in _OWN}
    if is_tls:
        given.setdefault("ssl_check_hostname", given.get("ssl_cert_reqs") != "none")
    return given


def _unknown(scheme: str, name: str, found: dict[str, Any]) -> str:
    """Name an unknown option, unless it may be the rest of a password."""
    if any("password" in before for before in found):
        return "what follows its password is no option; & in a password is written %26"
    shown = name if re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,40}", name) else "without a name"
    others = ", ".join(sorted(OPTIONS[scheme])) or "none"
    return f"its option {shown} is unknown; options of {scheme}:// are: {others}"
