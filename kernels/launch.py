"""Launch basics: the input error, device facts and shape checks."""

# mypy: disable-error-code="import-untyped,no-untyped-def,untyped-decorator"
from __future__ import annotations

from functools import cache

import torch
import triton
import triton.language as tl

# Tiles that programs share, over all launches at a time: a count each.
_MAX_TILES = 4096


class KernelInputError(ValueError):
    """A tensor given to a kernel has a shape, dtype or layout that the kernel cannot take."""


def require(condition: bool, message: str) -> None:
    """Raise KernelInputError with `message` unless `condition` holds."""
    if not condition:
        raise KernelInputError(message)


def require_contiguous(**tensors: torch.Tensor | None) -> None:
    """Raise KernelInputError naming the first tensor that is given and not contiguous."""
    for name, tensor in tensors.items():
        if tensor is not None and not tensor.is_contiguous():
            raise KernelInputError(f"{name} must be contiguous, its strides are {tensor.stride()}")


@cache
def num_processors(device: torch.device) -> int:
    """Count the multiprocessors of a GPU; on a CPU 4, enough to interleave programs."""
    if device.type != "cuda":
        return 4
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def supports_dependent_launch(device: torch.device) -> bool:
    """Say whether a kernel may start before its predecessor ended (compute capability >= 9)."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device)[0] >= 9


def next_power_of_2(value: int) -> int:
    """Round up to a power of two."""
    return 1 << max(value - 1, 0).bit_length()


def ceil_div(a: int, b: int) -> int:
    """Divide, rounding up."""
    return -(-a // b)


@cache
def _arrivals(device: torch.device) -> torch.Tensor:
    """Return the counts of programs that ended, zero between launches."""
    return torch.zeros(_MAX_TILES, dtype=torch.int32, device=device)


def shared_tiles(
    tiles: int, splits: int, size: int, device: torch.device
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return what programs need that share tiles: room for their sums, and counts of who ended.

    tiles of `size` numbers, each of `splits` programs: None twice for one alone. The last to end
    adds up all sums and leaves a count of zero.
    """
    if splits == 1:
        return None, None
    require(tiles <= _MAX_TILES, f"{tiles} tiles are shared, at most {_MAX_TILES} are")
    parts = torch.empty(tiles, splits, size, dtype=torch.float32, device=device)
    return parts, _arrivals(device)


def dependent_launch(device: torch.device) -> dict[str, bool]:
    """Return the launch options that let a kernel start while its predecessor drains.

    A kernel launched so calls `release_successor` first, and in every program `wait_for_inputs`
    before it touches anything that another kernel wrote or reads.
    """
    if not supports_dependent_launch(device):
        return {"PDL": False}
    return {"PDL": True, "launch_pdl": True}


@triton.jit
def release_successor(PDL: tl.constexpr):
    """Let the next kernel take what room is left, up to its own wait."""
    if PDL:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_inputs(PDL: tl.constexpr):
    """Wait until everything that earlier kernels wrote is visible."""
    if PDL:
        tl.extra.cuda.gdc_wait()
