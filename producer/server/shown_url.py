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
_FOLDERS = ("unix", "embedded")
_OPTION = re.compile(r"[?&#][^?&#=]*=")
# A place says nothing secret only if it is well-formed: a URL without its @ has its password there.
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]*(%[0-9A-Za-z_.-]*)?\]|[\w.%-]*)(:[0-9]*)?")
_NAME = re.compile(r"([\w.%-]*):")
_DATABASE = re.compile(r"/?[0-9]{0,9}/?")
_MASTER = re.compile(r"/?[\w.%-]*(/[0-9]{0,9})?/?")
# To the last @ and to the end: a password may hold blanks. A URL that somebody wrote without its //
# begins at the first colon with no blank behind it.
_IN_TEXT = re.compile(r":(/*)(?! ).*@", re.DOTALL)
_URL_IN_TEXT = re.compile(r"[^\s'\"]*://.*", re.DOTALL)
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
    return f"{scheme}{mark}{shown}{_hide_tail(scheme.lower(), tail)}"


def hide_in_text(text: str) -> str:
    """Return a sentence that may quote URLs, with stars from the first :// or : to the last @.

    What follows the name of a password is hidden too, and what follows the place of a URL.
    """
    shown = _IN_TEXT.sub(rf":\1{HIDDEN}@", _SECRET_IN_TEXT.sub(rf"\1\2{HIDDEN}", text))
    return _URL_IN_TEXT.sub(lambda found: hide_password(found[0]), shown)


def _hide_tail(scheme: str, tail: str) -> str:
    """Hide what is no place, options that are not known to be harmless, and fragments."""
    # Somebody may have written & for the first ?.
    head = re.split(r"[?#\s]|&[^&=/]*=", tail, maxsplit=1)[0]
    options = tail[len(head) :]
    names = [pair.partition("=")[0] for pair in options[1:].split("&")] if options else []
    # A second ? stands where somebody meant an &.
    is_plain = re.fullmatch(r"\?[^?#]*", options) is not None
    if not (is_plain and _PLAIN_OPTIONS.issuperset(names)):
        options = options[:1] and f"{options[0].strip()}{HIDDEN}"
    return f"{_place(scheme, head)}{options}".replace(HIDDEN * 2, HIDDEN)


def _place(scheme: str, head: str) -> str:
    """Return hosts and path, as far as they are well-formed for the scheme."""
    authority, slash, path = head.partition("/")
    has_folder = scheme in _FOLDERS
    is_followed = scheme.endswith("+sentinel")
    for address in authority.split(",") if is_followed else [authority]:
        if _ADDRESS.fullmatch(address) is None:
            name = _NAME.match(address)
            return f"{name[0]}{HIDDEN}" if name else HIDDEN
    if has_folder:
        is_plain = not authority
    else:
        is_plain = (_MASTER if is_followed else _DATABASE).fullmatch(path) is not None
    return authority + slash + (path if is_plain else HIDDEN)
