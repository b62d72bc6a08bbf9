"""The CPU's compiled kernels: found, compiled on first use, or missed with a message."""

from __future__ import annotations

import logging
from functools import cache
from typing import TYPE_CHECKING

from tokenbus.engine.cache_folder import cache_folder
from tokenbus.engine.errors import CacheUnusable
from tokenbus.kernels.cpu.compile import CompilerMissing, compiled_library
from tokenbus.kernels.cpu.native import NativeLibrary

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)


def native_library() -> NativeLibrary | None:
    """Return the kernels with memory of their own, or None where they cannot be compiled."""
    path = _library_path()
    return None if path is None else NativeLibrary(path)


@cache
def _library_path() -> Path | None:
    try:
        return compiled_library(cache_folder() / "kernels")
    except (CacheUnusable, CompilerMissing) as error:
        _log.warning(
            "%s; a model on the CPU runs in plain torch instead, at about half the speed."
            " Install g++ or clang++ to have the kernels compiled.",
            error,
        )
        return None
