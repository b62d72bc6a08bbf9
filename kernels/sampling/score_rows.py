"""Log-probabilities of given tokens, their ranks, and the most probable tokens beside them."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import next_power_of_2, require, require_contiguous
from tokenbus.kernels.sampling.cut import GROUP, ROWS
from tokenbus.kernels.sampling.first_pass import LOG2E, chunk_tokens, reduce_chunk

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.sampling.workspace import SamplingWorkspace

_LN2 = tl.constexpr(0.6931471805599453)
_NO_TOKEN = tl.constexpr(1 << 30)


class RowScores(NamedTuple):
    """token_ids' logprobs [M] fp32 and ranks [M] int64 (1 = most probable, ties share it).

    top_ids [M, K] int64 and top_logprobs [M, K] fp32, most probable first, of equal ones the
    smaller id first.
    """

    logprobs: Tensor
    ranks: Tensor
    top_ids: Tensor
    top_logprobs: Tensor


@triton.jit
def _reduce_kernel(logits, chunk_max, chunk_sum, group_max, vocab_size, logits_stride):
    """Reduce one chunk of one row of plain logits."""
    chunk = tl.program_id(0)
    num_chunks = tl.num_programs(0)
    index = tl.program_id(1).to(tl.int64)
    groups, token = chunk_tokens(chunk)
    x = tl.load(logits + index * logits_stride + token, mask=token < vocab_size,
                other=float("-inf")).to(tl.float32)  # fmt: skip
    top, weight, tops = reduce_chunk(x, LOG2E)
    tl.store(chunk_max + index * num_chunks + chunk, top)
    tl.store(chunk_sum + index * num_chunks + chunk, weight)
    tl.store(group_max + index * num_chunks * ROWS + groups, tops)


@triton.jit(
    do_not_specialize=["num_top", "top_stride"], do_not_specialize_on_alignment=["token_ids"]
)
def _score_kernel(
    logits, token_ids, logprobs, ranks, top_ids, top_logprobs, chunk_max, chunk_sum, group_max,
    vocab_size, num_chunks, logits_stride, num_top, top_stride, BLOCK_C: tl.constexpr,
    BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Score one row's token; then take its most probable tokens, one after the other.

    Only groups whose maximum is large enough are read again.
    """
    index = tl.program_id(0).to(tl.int64)
    logits += index * logits_stride
    group_max += index * num_chunks * ROWS
    offs = tl.arange(0, BLOCK_C)
    there = offs < num_chunks
    tops = tl.load(chunk_max + index * num_chunks + offs, mask=there, other=float("-inf"))
    sums = tl.load(chunk_sum + index * num_chunks + offs, mask=there, other=0.0)
    top = tl.max(tops)
    base = tl.where(top == float("-inf"), 0.0, top)
    normaliser = base + tl.log2(tl.sum(sums * tl.exp2((tops - base) * LOG2E))) * _LN2
    chosen = tl.load(logits + tl.load(token_ids + index)).to(tl.float32)
    tl.store(logprobs + index, chosen - normaliser)
    above = tl.zeros([ROWS, GROUP], tl.int32)
    for chunk in range(0, num_chunks):
        groups, token = chunk_tokens(chunk)
        is_above = tl.load(group_max + groups) > chosen
        if tl.max(is_above.to(tl.int32)) > 0:
            x = tl.load(logits + token, mask=is_above[:, None] & (token < vocab_size),
                        other=float("-inf")).to(tl.float32)  # fmt: skip
            above += (x > chosen).to(tl.int32)
    tl.store(ranks + index, (tl.sum(tl.sum(above, axis=1)) + 1).to(tl.int64))
    places = tl.arange(0, BLOCK_G)
    left = tl.load(group_max + places, mask=places < num_chunks * ROWS, other=float("-inf"))
    lanes = tl.arange(0, GROUP)
    last = tl.full([], float("inf"), tl.float32)
    last_token = tl.full([], -1, tl.int32)
    for taken in range(0, num_top):
        # The first group that holds a largest token, then the first such token after the last.
        most = tl.max(left)
        group = tl.min(tl.where(left == most, places, BLOCK_G - 1))
        token = group * GROUP + lanes
        x = tl.load(logits + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
        is_left = (x < last) | ((x == last) & (token > last_token))
        best = tl.max(tl.where(is_left, x, float("-inf")))
        found = tl.min(tl.where(is_left & (x == best), token, _NO_TOKEN))
        last_token = tl.minimum(found, vocab_size - 1)
        last = best
        tl.store(top_ids + index * top_stride + taken, last_token.to(tl.int64))
        tl.store(top_logprobs + index * top_stride + taken, best - normaliser)
        is_left = is_left & (token != last_token)
        rest = tl.max(tl.where(is_left, x, float("-inf")))
        left = tl.where(places == group, rest, left)


def score_rows(
    logits: Tensor,
    token_ids: Tensor,
    num_top: int,
    workspace: SamplingWorkspace,
) -> RowScores:
    """Score tokens under the distribution of the logits as they are.

    Args:
        logits: [M, V] fp32/bf16/fp16; token_ids: [M] int64, within the vocabulary.
        num_top: alternatives per row, at most V.
    Raises: KernelInputError if shapes, dtypes or layouts do not fit.
    Twin: engine.sampling.logprobs.raw_logprobs.
    """
    num_rows, vocab_size = logits.shape
    require(logits.stride(1) == 1, f"logits have strides {logits.stride()}")
    require(vocab_size == workspace.vocab_size, f"{vocab_size} tokens, {workspace.vocab_size} held")
    require(num_rows <= workspace.max_rows, f"{num_rows} rows, buffers hold {workspace.max_rows}")
    require(token_ids.shape == (num_rows,), f"token_ids is {tuple(token_ids.shape)}")
    require_contiguous(token_ids=token_ids)
    num_top = min(num_top, vocab_size)
    device, num_chunks = logits.device, workspace.num_chunks
    scores = RowScores(
        torch.empty(num_rows, dtype=torch.float32, device=device),
        torch.empty(num_rows, dtype=torch.int64, device=device),
        torch.empty(num_rows, num_top, dtype=torch.int64, device=device),
        torch.empty(num_rows, num_top, dtype=torch.float32, device=device),
    )
    if not num_rows:
        return scores
    _reduce_kernel[(num_chunks, num_rows)](
        logits, workspace.chunk_max, workspace.chunk_sum, workspace.group_max, vocab_size,
        logits.stride(0), num_warps=4,
    )  # fmt: skip
    _score_kernel[(num_rows,)](
        logits, token_ids, *scores, workspace.chunk_max, workspace.chunk_sum, workspace.group_max,
        vocab_size, num_chunks, logits.stride(0), num_top, num_top,
        BLOCK_C=max(16, next_power_of_2(num_chunks)), BLOCK_G=next_power_of_2(num_chunks * 64),
        num_warps=8,
    )  # fmt: skip
    return scores
