"""The user's cache folder: where models and compiled kernels are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder: TOKENBUS_CACHE, or tokenbus under the user's cache folder."""
    own = os.environ.get("TOKENBUS_CACHE")
    if own:
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "tokenbus"
