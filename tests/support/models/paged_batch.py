"""Build a batch of paged sequences in which every byte that must not be read is NaN."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# The interpreter has no bf16 arithmetic; on the GPU bf16 is what runs.
HALF = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
# The interpreter takes as long for either; the quick run has the one that GPUs run.
DTYPES = pytest.mark.parametrize(
    "dtype",
    [pytest.param(torch.float32, marks=pytest.mark.slow), HALF],
    ids=["fp32", "half"],
)


@dataclass(slots=True)
class PagedBatch:
    """Queries, pages and tables of one decode step; see `kernels.paged_decode`."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    block_table: Tensor
    context_lens: Tensor


def make_batch(
    context_lens: list[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    page_size: int,
    dtype: torch.dtype,
    shared: dict[tuple[int, ...], tuple[int, int]] | None = None,
    seed: int = 0,
) -> PagedBatch:
    """Fill pages in random order; `shared` maps rows to the page range that they hold in common."""
    rng = torch.Generator().manual_seed(seed)
    counts = [-(-length // page_size) for length in context_lens]
    num_pages = sum(counts) + 3
    order = (torch.randperm(num_pages - 1, generator=rng) + 1).tolist()
    table = torch.full((len(context_lens), max(max(counts), 1) + 1), 2**30, dtype=torch.int32)
    for row, count in enumerate(counts):
        for index in range(count):
            table[row, index] = order.pop()
    for rows, (first, end) in (shared or {}).items():
        for row in rows[1:]:
            table[row, first:end] = table[rows[0], first:end]
    shape = (num_pages, num_kv_heads, page_size, head_dim)
    k_pages, v_pages = torch.full(shape, float("nan")), torch.full(shape, float("nan"))
    for row, length in enumerate(context_lens):
        for index in range(counts[row]):
            used = min(page_size, length - index * page_size)
            page = int(table[row, index])
            for pages in (k_pages, v_pages):
                pages[page, :, :used] = torch.randn(num_kv_heads, used, head_dim, generator=rng)
    q = torch.randn(len(context_lens), num_heads, head_dim, generator=rng)
    return PagedBatch(
        q.to(DEVICE, dtype),
        k_pages.to(DEVICE, dtype),
        v_pages.to(DEVICE, dtype),
        table.to(DEVICE),
        torch.tensor(context_lens, dtype=torch.int32, device=DEVICE),
    )


def assert_close(out: Tensor, expected: Tensor, dtype: torch.dtype) -> None:
    """Compare per element and as a whole; NaN never passes.

    Per element 2 units in the last place of the largest value plus the rounding of p and of the
    sum; relative norm 1e-6 (fp32), 1e-3 (fp16), 5e-3 (bf16).
    """
    whole = {torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 6e-3}[dtype]
    element = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    out, expected = out.float().cpu(), expected.float().cpu()
    assert torch.isfinite(out).all(), "the output holds NaN or infinity"
    norm = (out - expected).norm() / expected.norm().clamp(min=1e-12)
    assert norm < whole, f"relative error {norm:.2e} of {whole:.0e}"
    torch.testing.assert_close(out, expected, rtol=element, atol=element)
