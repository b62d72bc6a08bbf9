"""The check of kernels: whether they compile on this machine, and compute what they should."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.cache_folder import cache_folder
from tokenbus.engine.errors import CacheUnusable
from tokenbus.kernels.cpu.compile import CompilerMissing, compiled_library
from tokenbus.kernels.cpu.native import NativeLibrary

if TYPE_CHECKING:
    from pathlib import Path

_ROWS, _WIDTH = 4, 256
# What the sums of a row may differ by in bfloat16.
_TOLERANCE = 0.05
_MAX_WORDS = 300


def gpu_kernels_fault() -> str | None:
    """Launch a kernel on the first GPU and compare it; say what is wrong, None if nothing is."""
    import torch

    from tokenbus.kernels import reference
    from tokenbus.kernels.norm import rms_norm

    rows = torch.randn(_ROWS, _WIDTH, device="cuda", dtype=torch.bfloat16)
    weight = torch.ones(_WIDTH, device="cuda", dtype=torch.bfloat16)
    try:
        given = rms_norm(rows, weight, 1e-6).float()
    except Exception as error:
        # The boundary of a check: whatever a compiler raises is what there is to tell.
        return f"triton compiles nothing here: {type(error).__name__}: {str(error)[:_MAX_WORDS]}"
    worst = (given - reference.rms_norm(rows, weight, 1e-6)).abs().max().item()
    if worst > _TOLERANCE:
        return f"a kernel computes something else than its reference, by {worst:.3g}"
    return None


def cpu_kernels() -> tuple[Path | None, str]:
    """Compile the kernels of this processor, or find them; return their folder, or why not."""
    try:
        folder = cache_folder() / "kernels"
        NativeLibrary(compiled_library(folder))
    except (CacheUnusable, CompilerMissing) as error:
        return None, str(error)
    return folder, ""
