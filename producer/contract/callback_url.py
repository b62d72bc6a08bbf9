"""Addresses in the hosts of webhooks: read once, the same way at the door and before each call.

A number has many spellings that some resolver or other takes for an IPv4 address: decimal, octal or
hexadecimal parts, fewer than four of them, letters that normalise to digits. All are read here, so
that what is judged is what could be connected to.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from urllib.parse import unquote, urlsplit

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_HOST_LENGTH = 253
_AUTHORITY = re.compile(r"(\[[^\[\]]+\]|[^\[\]:]+)(:[0-9]{0,5})?")
_LABEL = re.compile(r"[a-z0-9_-]{1,63}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
# Set aside for names that the DNS never resolves (RFC 6761, 7686, 9476).
_NOWHERE = ("invalid", "onion", "alt")
# Full stops of other scripts, which IDNA reads as dots.
_DOTS = str.maketrans({"\u3002": ".", "\uff0e": ".", "\uff61": "."})
_VARIATIONS = range(0xFE00, 0xFE10)


def check_callback_url(url: str) -> str:
    """Check what can be told without looking the host up; the control service does the rest.

    Raises: ValueError for a URL that could never be called.
    """
    if any(character <= " " or character in "\\\x7f" for character in url):
        raise ValueError("holds blanks, control characters or backslashes")
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https"):
        raise ValueError("has to begin with https:// or http://")
    if not parts.hostname or parts.port == 0:
        raise ValueError("names no host")
    if "@" in parts.netloc:
        raise ValueError("holds credentials; check the signature instead")
    _check_host(parts.netloc, parts.hostname)
    return url


def _check_host(authority: str, host: str) -> None:
    """Check that a host can be connected to or asked for. Raises: ValueError."""
    if _AUTHORITY.fullmatch(authority) is None:
        raise ValueError("its host and port are not written as host:port or [address]:port")
    in_brackets = authority.startswith("[")
    if any(_is_ignored(character) for character in host):
        raise ValueError("its host holds characters that nobody sees")
    if ".." in host.translate(_DOTS):
        raise ValueError("its host is no domain name")
    if not in_brackets and "%" in host:
        raise ValueError("its host is percent-encoded, which no resolver reads")
    if host_address(host) is None:
        if in_brackets:
            raise ValueError("its host in brackets is no IPv6 address")
        _check_name(host)


def host_address(host: str) -> Address | None:
    """Read the address that a host spells out, zone left out; None for a name.

    Raises: ValueError where the host ends in a number and is no address.
    """
    text = _plain(host)
    if ":" in text:
        return ipaddress.IPv6Address(text.strip("[]").partition("%")[0])
    labels = text.rstrip(".").split(".")
    if _NUMBER.fullmatch(labels[-1]) is None:
        return None
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise ValueError("its host ends in a number and is no IPv4 address")
    *leading, last = (_value(label) for label in labels)
    if any(part > 255 for part in leading) or last >= 256 ** (4 - len(leading)):
        raise ValueError("its host is a number that is no IPv4 address")
    value = last
    for at, part in enumerate(leading):
        value += part << (8 * (3 - at))
    return ipaddress.IPv4Address(value)


def _plain(host: str) -> str:
    """Write a host as a resolver would in the end: decoded, normalised, in lower case."""
    text = unquote(unicodedata.normalize("NFKC", unquote(host)).translate(_DOTS)).lower()
    return "".join(_digit(character) for character in text if not _is_ignored(character))


def _digit(character: str) -> str:
    """Return a digit of any script as the ASCII digit, all else as it is."""
    value = None if character.isascii() else unicodedata.decimal(character, None)
    return character if value is None else str(value)


def _is_ignored(character: str) -> bool:
    """Tell soft hyphens, joiners and variation selectors, which IDNA drops."""
    return unicodedata.category(character) == "Cf" or ord(character) in _VARIATIONS


def _value(label: str) -> int:
    """Read one part of an IPv4 address in any base. Raises: ValueError."""
    if label.startswith("0x"):
        digits, base = label[2:] or "0", 16
    else:
        digits, base = label, 8 if label.startswith("0") else 10
    digits = digits.lstrip("0") or "0"
    if len(digits) > 16:
        raise ValueError("its host is a number that is no IPv4 address")
    return int(digits, base)


def _check_name(host: str) -> None:
    """Check that a name can be asked for at all. Raises: ValueError."""
    name = host.translate(_DOTS).removesuffix(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            raise ValueError("its host is no domain name") from None
    labels = name.lower().split(".")
    for label in labels:
        if label.startswith("xn--"):
            _check_encoded(label)
    if labels[-1] in _NOWHERE:
        raise ValueError(f"its host is in .{labels[-1]}, where no name has an address")
    if len(name) > MAX_HOST_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("its host is no domain name")


def _check_encoded(label: str) -> None:
    """Check that a label says the name of another script. Raises: ValueError."""
    problem = ""
    try:
        label.encode().decode("idna")
    except UnicodeError:
        problem = f"its host holds {label}, which encodes no name"
    if problem:
        raise ValueError(problem)
