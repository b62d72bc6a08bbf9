"""The user's cache folder: where models and compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path

from tokenbus.engine.errors import CacheUnusable

_HINT = "TOKENBUS_CACHE names another folder for models and compiled kernels"


def cache_folder() -> Path:
    """Return the folder: TOKENBUS_CACHE, or tokenbus under the user's cache folder.

    Raises: CacheUnusable if nothing says where that is.
    """
    try:
        own = os.environ.get("TOKENBUS_CACHE")
        if own:
            return Path(own).expanduser()
        base = os.environ.get("XDG_CACHE_HOME")
        return (Path(base).expanduser() if base else Path.home() / ".cache") / "tokenbus"
    except RuntimeError:
        raise CacheUnusable(f"this user has no home folder; {_HINT}") from None


def made_in_cache(name: str) -> Path:
    """Return a folder of the cache, made with its parents if it is not there.

    Raises: CacheUnusable with what the system answered.
    """
    folder = cache_folder() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CacheUnusable(f"{folder} cannot be made: {error.strerror}; {_HINT}") from error
    return folder
