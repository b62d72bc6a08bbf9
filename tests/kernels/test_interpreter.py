"""Triton's interpreter as the other tests here use it."""

from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from models.paged_batch import DEVICE

pytestmark = pytest.mark.skipif(DEVICE.type == "cuda", reason="kernels are compiled")


@triton.jit  # type: ignore[untyped-decorator]  # Triton has no types
def _compute_kernel(numbers: Any, count: Any, OPERATION: tl.constexpr) -> None:
    value = tl.load(numbers)
    if OPERATION == "add":
        value += count
    elif OPERATION == "sub":
        value -= count
    else:
        value *= count
    tl.store(numbers, value)


@pytest.mark.parametrize(
    ("dtype", "number", "operation", "count", "wanted"),
    [
        (torch.int32, 2**30, "mul", 2, None),
        (torch.int32, -(2**30), "mul", 2, -(2**31)),
        (torch.int32, 2**31 - 1, "add", 1, None),
        (torch.int32, 2**31 - 2, "add", 1, 2**31 - 1),
        (torch.int32, -(2**31), "sub", 1, None),
        (torch.int64, 2**31 - 1, "add", 1, 2**31),
    ],
)
def test_integers_that_overflow_are_told(
    dtype: torch.dtype, number: int, operation: str, count: int, wanted: int | None
) -> None:
    """Indices that leave their 32 bits fail, and the last ones within them do not."""
    numbers = torch.tensor([number], dtype=dtype)
    if wanted is None:
        with pytest.raises(Exception, match=f"int32 overflow detected for operation {operation}"):
            _compute_kernel[(1,)](numbers, count, operation)
    else:
        _compute_kernel[(1,)](numbers, count, operation)
        assert numbers.tolist() == [wanted]
