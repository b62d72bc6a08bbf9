"""The release of tokenbus that runs here."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache
def release() -> str:
    """Return the version that is installed, empty where the source runs as it lies."""
    try:
        return version("tokenbus")
    except PackageNotFoundError:
        return ""
