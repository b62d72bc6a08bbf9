"""The draw: one token per row from logits, by argmax or by inverse CDF over what filters keep."""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.draw_outcomes import BROKEN_ROW, EMPTY_ROW
from tokenbus.kernels.launch import ceil_div, next_power_of_2, require, require_contiguous
from tokenbus.kernels.sampling.cut import CAPACITY, GROUP, ROWS, filter_row, load_block

if TYPE_CHECKING:
    from torch import Tensor

LOG2E = tl.constexpr(1.4426950408889634)
_BROKEN = tl.constexpr(BROKEN_ROW)
_EMPTY = tl.constexpr(EMPTY_ROW)
_GROUPS_PER_CHUNK = 64
_CHUNK_TOKENS = 4096
# Of one row on an H200: 16 warps take 30 % longer, 4 take 30 % longer where lists are long.
_DRAW_WARPS = 8


class SamplingWorkspace:
    """Static scratch of `sample_rows`; holds nothing between launches.

    chunk_max, chunk_sum: [max_rows, C] fp32, of chunks of 4,096 tokens: maximum, and weight in
    units of the maximum's. group_max: [max_rows, 64 C] fp32, of groups of 64 tokens. group_ids:
    the groups that a filtered row has to read, int32. values: [max_rows, 8192] fp32, candidates
    for a cut. With 256 rows of 152k tokens, 14 MB.
    """

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        require(0 < vocab_size <= 1 << 24, f"a vocabulary of {vocab_size} tokens")
        self.max_rows = max_rows
        self.vocab_size = vocab_size
        self.num_chunks = ceil_div(vocab_size, _CHUNK_TOKENS)
        num_groups = self.num_chunks * _GROUPS_PER_CHUNK
        chunks, groups = (max_rows, self.num_chunks), (max_rows, num_groups)
        self.chunk_max = torch.empty(chunks, dtype=torch.float32, device=device)
        self.chunk_sum = torch.empty(chunks, dtype=torch.float32, device=device)
        self.group_max = torch.empty(groups, dtype=torch.float32, device=device)
        self.group_ids = torch.empty(groups, dtype=torch.int32, device=device)
        self.values = torch.empty(max_rows, CAPACITY.value, dtype=torch.float32, device=device)


@triton.jit
def _summary_kernel(
    logits, temperature, chunk_max, chunk_sum, group_max, vocab_size, logits_stride,
    temperature_stride, HAS_FILTERS: tl.constexpr,
):  # fmt: skip
    """Reduce one chunk of one row to its maximum and its weight: the only pass over all logits."""
    chunk = tl.program_id(0)
    num_chunks = tl.num_programs(0)
    index = tl.program_id(1).to(tl.int64)
    groups = chunk * ROWS + tl.arange(0, ROWS)
    token = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(logits + index * logits_stride + token, mask=token < vocab_size,
                other=float("-inf")).to(tl.float32)  # fmt: skip
    tops = tl.max(x, axis=1)
    top = tl.max(tops)
    rate = LOG2E / tl.load(temperature + index * temperature_stride)
    # A chunk without an allowed token has no maximum to subtract.
    base = tl.where(top == float("-inf"), 0.0, top)
    weight = tl.sum(tl.sum(tl.exp2((x - base) * rate), axis=1))
    place = index * num_chunks + chunk
    tl.store(chunk_max + place, top)
    tl.store(chunk_sum + place, weight)
    if HAS_FILTERS:
        tl.store(group_max + index * num_chunks * ROWS + groups, tops)


@triton.jit
def _invert(weights, target):
    """Find the first entry [K] whose running sum exceeds the target, and the target's rest in it.

    Rounding can lift a target to the total: the last entry of positive weight is the result then.
    """
    order = tl.arange(0, weights.shape[0])
    running = tl.cumsum(weights, axis=0)
    index = tl.sum((running <= target).to(tl.int32))
    index = tl.minimum(index, tl.max(tl.where(weights > 0.0, order, 0)))
    before = tl.sum(tl.where(order == index, running - weights, 0.0))
    return index, target - before


@triton.jit
def _weigh_blocks(row, group_ids, num_groups, block_sums, vocab_size, cut, top, rate):
    """Write the weight of what the cut keeps in each block of listed groups."""
    for block in range(0, (num_groups + ROWS - 1) // ROWS):
        x, _ = load_block(row, group_ids, block, num_groups, vocab_size)
        kept = tl.where(x >= cut, tl.exp2((x - top) * rate), 0.0)
        tl.store(block_sums + block, tl.sum(tl.sum(kept, axis=1)))
    tl.debug_barrier()


@triton.jit
def _draw_in_block(row, groups, vocab_size, cut, top, rate, target):
    """Return the token at `target` of the running sum over ROWS groups, in their order."""
    lanes = tl.arange(0, GROUP)
    token = groups[:, None] * GROUP + lanes[None, :]
    x = tl.load(row + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    weights = tl.where(x >= cut, tl.exp2((x - top) * rate), 0.0).to(tl.float64)
    group, rest = _invert(tl.sum(weights, axis=1), target)
    is_chosen = tl.arange(0, ROWS) == group
    lane, _ = _invert(tl.sum(tl.where(is_chosen[:, None], weights, 0.0), axis=0), rest)
    return tl.sum(tl.where(is_chosen, groups, 0)) * GROUP + lane


@triton.jit
def _argmax_in_chunk(row, chunk, vocab_size, top):
    """Return the first token of a chunk whose logit is `top`."""
    groups = chunk * ROWS + tl.arange(0, ROWS)
    token = groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(row + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.minimum(tl.min(tl.where(x == top, token, vocab_size)), vocab_size - 1)


@triton.jit
def _draw_kernel(
    logits, temperature, top_k, top_p, min_p, u, is_random, token_ids, chunk_max, chunk_sum,
    group_max, group_ids, values, vocab_size, num_chunks, logits_stride, temperature_stride,
    top_k_stride, top_p_stride, min_p_stride, u_stride, is_random_stride,
    USE_TOP_K: tl.constexpr, USE_TOP_P: tl.constexpr, USE_MIN_P: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr,
):  # fmt: skip
    """Choose one row's token from its summary: the chunk by its weight, the token inside."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * logits_stride
    chunk_sum += index * num_chunks
    offs = tl.arange(0, BLOCK_C)
    there = offs < num_chunks
    tops = tl.load(chunk_max + index * num_chunks + offs, mask=there, other=float("-inf"))
    top = tl.max(tops)
    sums = tl.load(chunk_sum + offs, mask=there, other=0.0)
    # The weight of a chunk with a NaN or +inf in it is NaN, whatever its maximum says.
    is_broken = tl.max((sums != sums).to(tl.int32)) != 0  # noqa: PLR0124 - true of NaN alone
    # A row without one finite maximum has no distribution: it gets no token, never a hang.
    can_draw = (top > float("-inf")) & (top < float("inf")) & (is_broken == 0)
    if (tl.load(is_random + index * is_random_stride) != 0) & can_draw:
        rate = LOG2E / tl.load(temperature + index * temperature_stride)
        weights = sums * tl.exp2((tops - top) * rate)
        cut = tl.full([], float("-inf"), tl.float32)
        is_filtered = False
        num_groups = tl.full([], 0, tl.int32)
        group_ids += index * num_chunks * ROWS
        if USE_TOP_K | USE_TOP_P | USE_MIN_P:
            # Above the vocabulary every k is the same, and it need not fit 32 bits.
            k = tl.load(top_k + index * top_k_stride)
            k = tl.where(k < vocab_size, k, 0).to(tl.int32)
            p = tl.load(top_p + index * top_p_stride)
            least_p = tl.load(min_p + index * min_p_stride)
            is_filtered = (USE_TOP_K & (k > 0)) | (USE_TOP_P & (p < 1.0))
            is_filtered = is_filtered | (USE_MIN_P & (least_p > 0.0))
            if is_filtered:
                cut, num_groups = filter_row(
                    row, group_max + index * num_chunks * ROWS, group_ids,
                    values + index * CAPACITY, vocab_size, num_chunks * ROWS, top,
                    tl.sum(weights), rate, k, p, least_p, USE_TOP_K, USE_TOP_P, USE_MIN_P, BLOCK_G,
                )  # fmt: skip
                _weigh_blocks(row, group_ids, num_groups, chunk_sum, vocab_size, cut, top, rate)
                num_blocks = (num_groups + ROWS - 1) // ROWS
                weights = tl.load(chunk_sum + offs, mask=offs < num_blocks, other=0.0)
        exact = weights.to(tl.float64)
        target = tl.load(u + index * u_stride).to(tl.float64) * tl.sum(exact)
        block, rest = _invert(exact, target)
        groups = block * ROWS + tl.arange(0, ROWS)
        if is_filtered:
            groups = tl.load(group_ids + groups, mask=groups < num_groups, other=1 << 24)
        token = _draw_in_block(row, groups, vocab_size, cut, top, rate, rest)
        # One past the end only if not one weight of the block is positive.
        tl.store(token_ids + index, tl.minimum(token, vocab_size - 1).to(tl.int64))
    else:
        chunk = tl.min(tl.where((tops == top) & there, offs, num_chunks - 1))
        token = _argmax_in_chunk(row, chunk, vocab_size, top)
        is_empty = (top == float("-inf")) & (is_broken == 0)
        token = tl.where(can_draw, token, tl.where(is_empty, _EMPTY, _BROKEN))
        tl.store(token_ids + index, token.to(tl.int64))


def _check(logits: Tensor, scalars: dict[str, Tensor], workspace: SamplingWorkspace) -> None:
    """Refuse what the kernels would read wrongly."""
    require(logits.dim() == 2 and logits.stride(1) == 1, f"logits have strides {logits.stride()}")
    num_rows, vocab_size = logits.shape
    require(vocab_size == workspace.vocab_size, f"{vocab_size} tokens, {workspace.vocab_size} held")
    require(num_rows <= workspace.max_rows, f"{num_rows} rows, buffers hold {workspace.max_rows}")
    require(num_rows < 1 << 16, f"{num_rows} rows in one launch")
    require(logits.is_floating_point(), f"logits are {logits.dtype}")
    for name, tensor in scalars.items():
        require(tensor.shape == (num_rows,), f"{name} is {tuple(tensor.shape)}, not [{num_rows}]")
        is_float = name not in {"top_k", "is_random"}
        require(tensor.is_floating_point() == is_float, f"{name} is {tensor.dtype}")


def sample_rows(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    u: Tensor,
    is_random: Tensor,
    workspace: SamplingWorkspace,
    *,
    use_top_k: bool,
    use_top_p: bool,
    use_min_p: bool,
    out: Tensor | None = None,
) -> Tensor:
    """Draw one token per row, greedy, free and filtered rows mixed, in two launches.

    Args:
        logits: [M, V], bf16/fp16/fp32, rows may be strided; -inf = forbidden.
        temperature, top_p, min_p: [M] fp32; top_k: [M] int; any stride. temperature > 0 in every
            row; top_k 0, top_p 1 and min_p 0 filter nothing.
        u: [M] fp64 or fp32 in [0, 1): a row's only randomness.
        is_random: [M] int or bool, 0 = argmax.
        workspace: for at least M rows of V tokens.
        use_top_k, use_top_p, use_min_p: whether any row asks for the filter; what is False is not
            compiled in.
    Returns: [M] int64. Of equal maxima argmax takes the first. A draw takes the first token, in
        vocabulary order, whose running sum of kept probability exceeds u times all of it; top-k,
        then top-p of what top-k kept, then min-p; tokens that tie at a border stay together. A row
        depends on its own values alone. A row that holds NaN or +inf gets `BROKEN_ROW`, one of
        nothing but -inf `EMPTY_ROW`: see `draw_outcomes`.
    Raises: KernelInputError if shapes, dtypes or layouts do not fit.
    Source: pivot search as in FlashInfer's sampling (Ye et al. 2025), exact instead of by
        rejection, since one uniform decides; twin: reference.sample_rows.
    """
    scalars = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "u": u,
        "is_random": is_random,
    }  # fmt: skip
    _check(logits, scalars, workspace)
    num_rows, vocab_size = logits.shape
    if out is None:
        out = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    require(out.shape == (num_rows,) and out.dtype == torch.int64, "out is not [M] int64")
    require_contiguous(out=out)
    num_chunks = workspace.num_chunks
    if is_random.dtype == torch.bool:
        is_random = is_random.view(torch.uint8)
    _summary_kernel[(num_chunks, num_rows)](
        logits, temperature, workspace.chunk_max, workspace.chunk_sum, workspace.group_max,
        vocab_size, logits.stride(0), temperature.stride(0),
        HAS_FILTERS=use_top_k or use_top_p or use_min_p, num_warps=4,
    )  # fmt: skip
    _draw_kernel[(num_rows,)](
        logits, temperature, top_k, top_p, min_p, u, is_random, out, workspace.chunk_max,
        workspace.chunk_sum, workspace.group_max, workspace.group_ids, workspace.values,
        vocab_size, num_chunks, logits.stride(0), temperature.stride(0), top_k.stride(0),
        top_p.stride(0), min_p.stride(0), u.stride(0), is_random.stride(0),
        USE_TOP_K=use_top_k, USE_TOP_P=use_top_p, USE_MIN_P=use_min_p,
        BLOCK_C=max(16, next_power_of_2(num_chunks)),
        BLOCK_G=next_power_of_2(num_chunks * _GROUPS_PER_CHUNK), num_warps=_DRAW_WARPS,
    )  # fmt: skip
    return out
