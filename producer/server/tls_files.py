"""Files of TLS that a server URL names, read once before the first connection.

What is wrong with them is told by option and at once: no waiting mends it. An encrypted key would
ask for its passphrase on the terminal, in the middle of whatever runs.
"""

from __future__ import annotations

import ssl
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenbus.producer.errors import UrlInvalid

if TYPE_CHECKING:
    from tokenbus.producer.server.url import ServerUrl

_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


def check_tls_files(url: ServerUrl) -> None:
    """Read the files as a connection will. Raises: UrlInvalid with the option and the reason."""
    problem = ""
    try:
        _load(url.tls_options)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise UrlInvalid(f"server URL {str(url)!r}: {problem}")


def _load(options: dict[str, Any]) -> None:
    """Load what is given into a context that nobody uses. Raises: ValueError."""
    for name in _FILES:
        if name in options:
            _check_readable(name, Path(options[name]))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    authorities, data = options.get("ssl_ca_certs"), options.get("ssl_ca_data")
    if authorities or data:
        _try(
            "ssl_ca_certs" if authorities else "ssl_ca_data",
            lambda: context.load_verify_locations(cafile=authorities, cadata=data),
        )
    own, key = options.get("ssl_certfile"), options.get("ssl_keyfile")
    if key and not own:
        raise ValueError("its option ssl_keyfile needs ssl_certfile beside it")
    if own:
        _try(
            "ssl_keyfile" if key else "ssl_certfile",
            lambda: context.load_cert_chain(own, key, password=_no_passphrase),
        )


def _check_readable(name: str, path: Path) -> None:
    reason = ""
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            reason = "it is no file"
        else:
            path.open("rb").close()
    except OSError as error:
        reason = error.strerror or type(error).__name__
    if reason:
        raise ValueError(f"its option {name}: {reason}")


def _try(name: str, load: Any) -> None:
    reason = ""
    try:
        load()
    except ssl.SSLError as error:
        reason = (error.reason or str(error)).replace("_", " ").lower()
    except (OSError, ValueError) as error:
        reason = str(error)
    if reason:
        raise ValueError(f"its option {name}: {reason}")


def _no_passphrase() -> str:
    raise ValueError("the key is encrypted; give one without a passphrase")
