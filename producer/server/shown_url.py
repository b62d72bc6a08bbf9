"""URLs as they may be shown: without anything that could be a secret.

A URL that is wrong is shown too, and what is wrong with it is often its password. So nothing is
taken apart by the rules of URLs here: what stands before the last @ is hidden, whatever it is.
"""

from __future__ import annotations

import re

HIDDEN = "***"
# Options whose values say nothing that has to be kept secret.
_PLAIN_OPTIONS = {
    *("db", "allow_eviction", "client_name", "max_connections", "health_check_interval"),
    *("socket_timeout", "socket_connect_timeout", "socket_keepalive"),
    *("ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile"),
}
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,31}")
_OPTION = re.compile(r"[?&#][^?&#=]*=")
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]*(%[0-9A-Za-z_.-]*)?\]|[^:\[\]]*)(:[0-9]*)?")
# To the last @ and to the end: a password may hold blanks. A URL that somebody wrote without its //
# begins at the first colon with no blank behind it.
_IN_TEXT = re.compile(r":(/*)(?! ).*@", re.DOTALL)
_SECRET_IN_TEXT = re.compile(r"(pass|auth|password)([= ]).*", re.DOTALL | re.IGNORECASE)


def hide_password(text: str) -> str:
    """Return a URL, well-formed or not, with stars for all that could be a password."""
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "", text
    elif _SCHEME.fullmatch(scheme) is None:
        scheme = HIDDEN
    before, at, tail = rest.rpartition("@")
    if at and _OPTION.search(before):
        # The @ may belong to the value of an option, and what follows it too.
        return f"{scheme}{mark}{HIDDEN}"
    shown = f"{HIDDEN}@" if at else ""
    return f"{scheme}{mark}{shown}{_hide_options(tail)}"


def hide_in_text(text: str) -> str:
    """Return a sentence that may quote URLs, with stars from the first :// or : to the last @.

    What follows the name of a password is hidden too.
    """
    return _IN_TEXT.sub(rf":\1{HIDDEN}@", _SECRET_IN_TEXT.sub(rf"\1\2{HIDDEN}", text))


def _hide_options(tail: str) -> str:
    """Hide ports that are no numbers, options that are not known to be harmless, and fragments."""
    head = re.split(r"[?#]", tail, maxsplit=1)[0]
    authority = head.partition("/")[0]
    for address in authority.split(","):
        if _ADDRESS.fullmatch(address) is None:
            return f"{address.partition(':')[0]}:{HIDDEN}"
    options = tail[len(head) :]
    names = [pair.partition("=")[0] for pair in options[1:].split("&")] if options else []
    if options.startswith("#") or "#" in options or not _PLAIN_OPTIONS.issuperset(names):
        options = options[:1] + HIDDEN
    return head + options
