"""Errors of the device, told from those that one sequence can cause."""

from __future__ import annotations

import torch

from tokenbus.engine.containment import breaks_arithmetic
from tokenbus.engine.errors import RankLost

# What drivers and libraries say through a plain RuntimeError.
_WORDS = ("CUDA error", "CUDA driver error", "Triton Error", "CUBLAS_STATUS", "CUDNN_STATUS")


def is_device_fault(error: Exception) -> bool:
    """Tell whether the device failed, its memory running out included."""
    if isinstance(error, (torch.AcceleratorError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error) for word in _WORDS)


def escapes(error: Exception) -> bool:
    """Tell whether an error ends the engine although it came up in one sequence's work.

    Memory that one sequence's set-up does not get is its own fault: the device goes on.
    """
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, RankLost) or breaks_arithmetic(error) or is_device_fault(error)
