"""Formats of texts as patterns; a format that no pattern tells exactly is refused.

By JSON Schema an unknown format asserts nothing. It passes, unless it looks like a known one.

Sources: RFC 3339 (dates, times, durations), 5321 (mail), 3986 and 3987 (URIs), 4291 (IPv6), 6570
(URI templates), 6901 (JSON pointers), 9562 (UUIDs), 4648 (base64).
"""

from __future__ import annotations

import difflib
from functools import cache

from tokenbus.engine.grammar.patterns.pattern_tree import PatternRefused

# Formats that say nothing about a text: how it is shown, or that it is of some other kind.
_NO_CONSTRAINT = frozenset(
    [
        "password", "binary", "path", "file-path", "directory-path", "json-string", "int8", "int16",
        "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "safeint",
        "html", "markdown", "multiline", "textarea", "commonmark",
    ]
)  # fmt: skip
_WHY = {
    "hostname": "labels of other scripts (xn--…) are beyond a grammar; use pattern",
    "idn-hostname": "labels of other scripts are beyond a grammar; use pattern",
    "idn-email": "domains of other scripts are beyond a grammar; use email or pattern",
    "host-name": "labels of other scripts (xn--…) are beyond a grammar; use pattern",
}
# Letters that a misspelled format shares with the right one: `datetime` 0.94, `e-mail` 0.91,
# `timestamp` and `time` 0.62, `simple-template` and `uri-template` 0.74.
_ALIKE = 0.82


def is_known(name: str) -> bool:
    """Tell whether a format has a meaning here, be it one that a grammar cannot express."""
    return name in _PATTERNS or name in _WHY or name in _NO_CONSTRAINT


@cache
def format_pattern(name: str) -> str | None:
    """Return the pattern of a format, None if it constrains nothing.

    Raises: PatternRefused for a format that is not known, or not expressible.
    """
    if name in _NO_CONSTRAINT:
        return None
    if name in _WHY:
        raise PatternRefused(f"{name!r} is not supported: {_WHY[name]}")
    if name in _PATTERNS:
        return f"^(?:{_PATTERNS[name]})$"
    alike = difflib.get_close_matches(name.lower(), [*_PATTERNS, *_WHY], 1, _ALIKE)
    if alike:
        raise PatternRefused(f"{name!r} is not a known format; did you mean {alike[0]!r}?")
    return None


def _leap_seconds() -> str:
    """Return times of the 60th second: 23:59 UTC alone, as each offset spells it."""
    options = []
    for sign in (1, -1):
        for hours in range(24):
            by_minute = []
            for minutes in range(60):
                local = (23 * 60 + 59 + sign * (60 * hours + minutes)) % 1440
                by_minute.append((local // 60, local % 60, minutes))
            for hour in sorted({one[0] for one in by_minute}):
                pairs = "|".join(
                    f"{minute:02}:60{_FRACTION}{_SIGNS[sign]}{hours:02}:{offset:02}"
                    for local, minute, offset in by_minute
                    if local == hour
                )
                options.append(f"{hour:02}:(?:{pairs})")
    return "|".join([f"23:59:60{_FRACTION}[Zz]", *options])


_SIGNS = {1: r"\+", -1: "-"}
_FRACTION = r"(?:\.\d+)?"
_DAYS = (
    r"\d{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_LEAP_YEAR = r"(?:\d\d(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = f"(?:{_DAYS}|{_LEAP_YEAR}-02-29)"
_HOUR, _MINUTE = r"(?:[01]\d|2[0-3])", r"[0-5]\d"
_CLOCK = f"{_HOUR}:{_MINUTE}:{_MINUTE}{_FRACTION}"
_OFFSET = f"(?:[Zz]|[+-]{_HOUR}:{_MINUTE})"
_TIME = f"(?:{_CLOCK}{_OFFSET}|{_leap_seconds()})"
_DURATION_TIME = r"T(?:\d+H(?:\d+M(?:\d+S)?)?|\d+M(?:\d+S)?|\d+S)"
_DURATION_DATE = r"(?:\d+Y(?:\d+M(?:\d+D)?)?|\d+M(?:\d+D)?|\d+D)"

_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"
_IPV4 = rf"{_BYTE}(?:\.{_BYTE}){{3}}"
_H16 = "[0-9A-Fa-f]{1,4}"
_LS32 = f"(?:{_H16}:{_H16}|{_IPV4})"
_IPV6 = (
    "(?:"
    + "|".join(
        [
            f"(?:{_H16}:){{6}}{_LS32}",
            *(
                (f"(?:{_H16}(?::{_H16}){{0,{before - 1}}})?" if before else "")
                + "::"
                + (f"(?:{_H16}:){{{5 - before}}}" if before < 5 else "")
                + _LS32
                for before in range(6)
            ),
            f"(?:{_H16}(?::{_H16}){{0,5}})?::{_H16}",
            f"(?:{_H16}(?::{_H16}){{0,6}})?::",
        ]
    )
    + ")"
)

_PERCENT = "%[0-9A-Fa-f]{2}"
_UNRESERVED, _SUB = "A-Za-z0-9._~-", "!$&'()*+,;="
_UCS = (
    "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef"
    + "".join(f"{chr(plane << 16)}-{chr((plane << 16) + 0xFFFD)}" for plane in range(1, 14))
    + "\U000e1000-\U000efffd"
)
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"


def _references(ucs: str, private: str) -> tuple[str, str]:
    """Return the patterns of a URI and of a relative reference, with characters beside ASCII."""
    path_char = rf"(?:[:@{_SUB}{ucs}{_UNRESERVED}]|{_PERCENT})"
    user = rf"(?:[:{_SUB}{ucs}{_UNRESERVED}]|{_PERCENT})*@"
    name = rf"(?:[{_SUB}{ucs}{_UNRESERVED}]|{_PERCENT})*"
    literal = rf"\[(?:{_IPV6}|[vV][0-9A-Fa-f]+\.[:{_SUB}{_UNRESERVED}]+)\]"
    authority = rf"(?:{user})?(?:{literal}|{name})(?::\d*)?"
    segments = f"(?:/{path_char}*)*"
    absolute = f"/(?:{path_char}+{segments})?"
    query = rf"(?:\?(?:{path_char}|[/?{private}])*)?"
    fragment = rf"(?:#(?:{path_char}|[/?])*)?"
    net = f"//{authority}{segments}"
    first = rf"(?:[@{_SUB}{ucs}{_UNRESERVED}]|{_PERCENT})+"
    tail = query + fragment
    whole = f"[A-Za-z][A-Za-z0-9+.-]*:(?:{net}|{absolute}|{path_char}+{segments})?{tail}"
    relative = f"(?:{net}|{absolute}|{first}{segments})?{tail}"
    return whole, relative


_URI, _RELATIVE = _references("", "")
_IRI, _RELATIVE_IRI = _references(_UCS, _PRIVATE)
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]+"
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_QUOTED = r'"(?:[ !#-\x5b\x5d-~]|\\[ -~])*"'
_EMAIL = (
    rf"(?:{_ATOM}(?:\.{_ATOM})*|{_QUOTED})"
    rf"@(?:{_LABEL}(?:\.{_LABEL})*|\[(?:{_IPV4}|IPv6:{_IPV6})\])"
)
_HOSTS = rf"(?:[{_SUB}{_UNRESERVED}]|{_PERCENT}|\[{_IPV6}\])+(?::\d+)?"
_MULTI_HOST = (
    rf"[A-Za-z][A-Za-z0-9+.-]*://(?:(?:[:{_SUB}{_UNRESERVED}]|{_PERCENT})*@)?{_HOSTS}(?:,{_HOSTS})*"
    rf"(?:/(?:[:@/{_SUB}{_UNRESERVED}]|{_PERCENT})*)?(?:\?(?:[:@/?{_SUB}{_UNRESERVED}]|{_PERCENT})*)?"
)


def _regex(depth: int) -> str:
    """Return a pattern of patterns whose groups nest no deeper.

    Ranges of a class are those of letters and digits, counts have one bound, and groups no names:
    the rest is no regular language.
    """
    escape = (
        r"\\(?:[dDwWsSbBtnrfv]|[^A-Za-z0-9\n\r\u2028\u2029]"
        "|x[0-9A-Fa-f]{2}|u[0-9A-Fa-f]{4}|c[A-Za-z])"
    )
    item = rf"(?:[^\\\[\]\n\r-]|a-z|A-Z|0-9|{escape})"
    atom = rf"(?:[^\\^$.*+?()\[\]{{}}|/\n\r]|\.|\[\^?{item}*\]|{escape}"
    look = ""
    if depth:
        inner = _regex(depth - 1)
        atom += rf"|\((?:\?:)?{inner}\)"
        look = rf"|\(\?<?[=!]{inner}\)"
    count = r"(?:[*+?]|\{\d+,?\})\??"
    sequence = rf"(?:[\^$]|{atom})(?:{count})?{look})*"
    return rf"{sequence}(?:\|{sequence})*"


# A class has no control characters as the library takes them, so they stand beside it one by one.
_CONTROLS = "|".join(rf"\x{code:02x}" for code in range(32) if code not in (9, 10, 13))
_POINTER = f"(?:/(?:[^~/]|~[01]|{_CONTROLS})*)*"
_VARIABLE = rf"(?:\w|{_PERCENT})(?:\.?(?:\w|{_PERCENT}))*(?::[1-9]\d{{0,3}}|\*)?"
_TEMPLATE = (
    rf"(?:[!#$&-;=?-\x5b\x5d_a-z~{_UCS}{_PRIVATE}]|{_PERCENT}"
    rf"|\{{[+#./;?&=,!@|]?{_VARIABLE}(?:,{_VARIABLE})*\}})*"
)
_HEX = "[0-9A-Fa-f]"
_UUID = f"{_HEX}{{8}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{4}}-{_HEX}{{12}}"
_BASE64 = "[A-Za-z0-9+/]"
_BASE64_URL = "[A-Za-z0-9_-]"
_WIDTH4, _WIDTH6 = r"/(?:3[0-2]|[12]?\d)", r"/(?:12[0-8]|1[01]\d|[1-9]?\d)"
_NETWORK4, _NETWORK6 = f"{_IPV4}(?:{_WIDTH4})?", f"{_IPV6}(?:{_WIDTH6})?"
_PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": f"P(?:{_DURATION_DATE}(?:{_DURATION_TIME})?|{_DURATION_TIME}|\\d+W)",
    "email": _EMAIL,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "cidrv4": f"{_IPV4}{_WIDTH4}",
    "cidrv6": f"{_IPV6}{_WIDTH6}",
    "ipv4network": _NETWORK4,
    "ipv6network": _NETWORK6,
    "ipv4interface": _NETWORK4,
    "ipv6interface": _NETWORK6,
    "ipvanyaddress": f"(?:{_IPV4}|{_IPV6})",
    "ipvanynetwork": f"(?:{_NETWORK4}|{_NETWORK6})",
    "ipvanyinterface": f"(?:{_NETWORK4}|{_NETWORK6})",
    "uri": _URI,
    "url": _URI,
    "uri-reference": f"(?:{_URI}|{_RELATIVE})",
    "ip-address": _IPV4,
    "iso-time": f"(?:{_CLOCK}{_OFFSET}?|{_leap_seconds()})",
    "iso-date-time": f"{_DATE}[Tt ](?:{_CLOCK}{_OFFSET}?|{_leap_seconds()})",
    "json-pointer-uri-fragment": rf"#(?:/(?:[A-Za-z0-9._!$&'()*+,;=:@-]|~[01]|{_PERCENT})*)*",
    "char": r"[\s\S]",
    "iri": _IRI,
    "iri-reference": f"(?:{_IRI}|{_RELATIVE_IRI})",
    "uri-template": _TEMPLATE,
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9]\d*)(?:#|{_POINTER})",
    "uuid": _UUID,
    "guid": _UUID,
    **{
        f"uuid{version}": (
            f"{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89ABab]{_HEX}{{3}}-{_HEX}{{12}}"
        )
        for version in range(1, 9)
    },
    "byte": f"(?:{_BASE64}{{4}})*(?:{_BASE64}{{2}}==|{_BASE64}{{3}}=)?",
    "base64": f"(?:{_BASE64}{{4}})*(?:{_BASE64}{{2}}==|{_BASE64}{{3}}=)?",
    "base64url": f"(?:{_BASE64_URL}{{4}})*(?:{_BASE64_URL}{{2}}(?:==)?|{_BASE64_URL}{{3}}=?)?",
    "jwt": rf"{_BASE64_URL}+\.{_BASE64_URL}+\.{_BASE64_URL}*",
    "nanoid": "[A-Za-z0-9_-]{21}",
    "cuid": r"[cC][^\s-]{8,}",
    "cuid2": "[0-9a-z]+",
    "ulid": "[0-9A-HJKMNP-TV-Za-hjkmnp-tv-z]{26}",
    "xid": "[0-9a-vA-V]{20}",
    "ksuid": "[A-Za-z0-9]{27}",
    "e164": r"\+[1-9]\d{6,14}",
    "mac": f"{_HEX}{{2}}(?::{_HEX}{{2}}){{5}}",
    "fraction": r"[+-]?\d+(?:/[1-9]\d*)?",
    "multi-host-uri": _MULTI_HOST,
    "regex": _regex(2),
    "color": "(?:#[0-9A-Fa-f]{3}|#[0-9A-Fa-f]{6})",
}
