"""The draw: one token per row from logits, by argmax or by inverse CDF over what filters keep.

It is one file because the draw reads what the launch before it leaves, and nothing else does.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl

from tokenbus.kernels.draw_outcomes import BROKEN_ROW, EMPTY_ROW
from tokenbus.kernels.launch import (
    dependent_launch,
    next_power_of_2,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)
from tokenbus.kernels.sampling.columns import FLOATS, INTS
from tokenbus.kernels.sampling.cut import CAPACITY, GROUP, ROWS, filter_row, load_block
from tokenbus.kernels.sampling.first_pass import LOG2E, TEMPERATURE, chunk_tokens, pass_kernel
from tokenbus.kernels.sampling.workspace import GROUPS_PER_CHUNK

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.kernels.sampling.rule_tables import RuleTables
    from tokenbus.kernels.sampling.workspace import RowColumns, SamplingWorkspace

_BROKEN = tl.constexpr(BROKEN_ROW)
_EMPTY = tl.constexpr(EMPTY_ROW)
_TOP_P = tl.constexpr(FLOATS.index("top_p"))
_MIN_P = tl.constexpr(FLOATS.index("min_p"))
_KEY = tl.constexpr(INTS.index("key"))
_INCREMENT = tl.constexpr(INTS.index("increment"))
_TOP_K = tl.constexpr(INTS.index("top_k"))
_IS_RANDOM = tl.constexpr(INTS.index("is_random"))
# Rules are rounded step by step, as torch rounds them; without the limit a thread takes a hundred
# registers, and too few programs are under way to hide what they wait for.
_PLAIN_PASS: dict[str, Any] = {"num_warps": 4}
_RULED_PASS: dict[str, Any] = {"num_warps": 8, "maxnreg": 80, "enable_fp_fusion": False}
# Of one row on an H200: 16 warps take 30 % longer, 4 take 30 % longer where lists are long.
_DRAW_WARPS = 8


@triton.jit
def _uniform(ints, position):
    """Return the row's uniform at a position, fp64 in [0, 1): SplitMix64 at a counter."""
    key = tl.load(ints + _KEY).to(tl.uint64)
    increment = tl.load(ints + _INCREMENT).to(tl.uint64)
    z = key + (position + 1).to(tl.uint64) * increment
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB
    z = z ^ (z >> 31)
    # The 53 high bits fill the mantissa of a double.
    return (z >> 11).to(tl.float64) * 1.1102230246251565e-16


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
    _, token = chunk_tokens(chunk)
    x = tl.load(row + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    return tl.minimum(tl.min(tl.where(x == top, token, vocab_size)), vocab_size - 1)


@triton.jit(do_not_specialize_on_alignment=["rows", "positions"])
def _draw_kernel(
    logits, rows, positions, floats, ints, token_ids, chunk_max, chunk_sum, group_max, group_ids,
    values, vocab_size, num_chunks, logits_stride, floats_stride, ints_stride,
    HAS_FILTERS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_G: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Choose one row's token from its summary: the chunk by its weight, the token inside."""
    release_successor(PDL)
    index = tl.program_id(0).to(tl.int64)
    wait_for_inputs(PDL)
    held = tl.load(rows + index).to(tl.int64)
    floats += held * floats_stride
    ints += held * ints_stride
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
    if (tl.load(ints + _IS_RANDOM) != 0) & can_draw:
        rate = LOG2E / tl.load(floats + TEMPERATURE)
        weights = sums * tl.exp2((tops - top) * rate)
        cut = tl.full([], float("-inf"), tl.float32)
        is_filtered = False
        num_groups = tl.full([], 0, tl.int32)
        group_ids += index * num_chunks * ROWS
        if HAS_FILTERS:
            # Above the vocabulary every k is the same, and it need not fit 32 bits.
            k = tl.load(ints + _TOP_K)
            k = tl.where(k < vocab_size, k, 0).to(tl.int32)
            p = tl.load(floats + _TOP_P)
            least_p = tl.load(floats + _MIN_P)
            is_filtered = (k > 0) | (p < 1.0) | (least_p > 0.0)
            if is_filtered:
                cut, num_groups = filter_row(
                    row, group_max + index * num_chunks * ROWS, group_ids,
                    values + index * CAPACITY, vocab_size, num_chunks * ROWS, top,
                    tl.sum(weights), rate, k, p, least_p, BLOCK_G,
                )  # fmt: skip
                _weigh_blocks(row, group_ids, num_groups, chunk_sum, vocab_size, cut, top, rate)
                num_blocks = (num_groups + ROWS - 1) // ROWS
                weights = tl.load(chunk_sum + offs, mask=offs < num_blocks, other=0.0)
        exact = weights.to(tl.float64)
        target = _uniform(ints, tl.load(positions + index)) * tl.sum(exact)
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


def _check(
    logits: Tensor,
    columns: RowColumns,
    rows: Tensor,
    positions: Tensor,
    workspace: SamplingWorkspace,
) -> None:
    """Refuse what the kernels would read wrongly."""
    require(logits.dim() == 2 and logits.stride(1) == 1, f"logits have strides {logits.stride()}")
    num_rows, vocab_size = logits.shape
    require(vocab_size == workspace.vocab_size, f"{vocab_size} tokens, {workspace.vocab_size} held")
    require(num_rows <= workspace.max_rows, f"{num_rows} rows, buffers hold {workspace.max_rows}")
    require(num_rows < 1 << 16, f"{num_rows} rows in one launch")
    require(logits.is_floating_point(), f"logits are {logits.dtype}")
    for name, tensor in (("rows", rows), ("positions", positions)):
        require(tensor.shape == (num_rows,), f"{name} is {tuple(tensor.shape)}, not [{num_rows}]")
        require(tensor.dtype == torch.int64, f"{name} is {tensor.dtype}")
    require_contiguous(rows=rows, positions=positions)
    require(columns.floats.shape[1] == len(FLOATS), f"{columns.floats.shape[1]} columns of floats")
    require(columns.ints.shape[1] == len(INTS), f"{columns.ints.shape[1]} columns of integers")
    require(columns.floats.dtype == torch.float32, f"floats are {columns.floats.dtype}")
    require(columns.ints.dtype == torch.int64, f"integers are {columns.ints.dtype}")
    num_stops = columns.stop_ids.shape[1]
    require(num_stops & (num_stops - 1) == 0, f"{num_stops} stop ids are no power of two")


def reduce_rows(
    logits: Tensor,
    columns: RowColumns,
    rows: Tensor,
    positions: Tensor,
    workspace: SamplingWorkspace,
    *,
    rules: RuleTables | None = None,
    bitmask: Tensor | None = None,
    adjusted: Tensor | None = None,
) -> Tensor:
    """Pass over all logits once: reduce each row into the workspace, with its rules applied.

    Arguments are those of `draw_rows`.
    Returns: [M, V], the logits to draw from: those given, or with rules new ones in fp32.
    """
    num_rows, vocab_size = logits.shape
    target = logits
    # Where there are no rules, any tensor that is always at an aligned address.
    marks = counts = bias_ids = biases = words = history = workspace.group_ids
    num_biases = num_words = word_length = 1
    if rules is not None:
        require(rules.vocab_size == vocab_size, f"rules for {rules.vocab_size} tokens")
        if adjusted is None:
            adjusted = torch.empty(logits.shape, dtype=torch.float32, device=logits.device)
        target = adjusted
        require(target.dtype == torch.float32, f"adjusted logits are {target.dtype}")
        require(len(target) >= num_rows and target.shape[1] == vocab_size, "adjusted: [>= M, V]")
        require(target.stride(1) == 1, f"adjusted logits have strides {target.stride()}")
        marks, counts, words, history = rules.marks, rules.counts, rules.words, rules.history
        bias_ids, biases = rules.bias_ids, rules.biases
        num_biases, num_words = rules.max_biases, rules.max_words
        word_length = rules.max_word_length
    require(bitmask is None or rules is not None, "a mask is applied with the rules")
    if bitmask is not None:
        require(bitmask.dtype == torch.int32 and len(bitmask) == num_rows, "bitmask: [M, W] int32")
        require_contiguous(bitmask=bitmask)
    if num_rows:
        pass_kernel[(workspace.num_chunks, num_rows)](
            logits, rows, positions, columns.floats, columns.ints, columns.stop_ids,
            workspace.group_ids if bitmask is None else bitmask, marks, counts, bias_ids, biases,
            words, history, target, workspace.chunk_max, workspace.chunk_sum, workspace.group_max,
            vocab_size,
            0 if bitmask is None else bitmask.shape[1], vocab_size if marks.numel() else 0,
            logits.stride(0), target.stride(0), columns.floats.stride(0), columns.ints.stride(0),
            columns.stop_ids.stride(0), HAS_RULES=rules is not None,
            B=num_biases, W=num_words, L=word_length, S=columns.stop_ids.shape[1],
            **(_PLAIN_PASS if rules is None else _RULED_PASS),
            **dependent_launch(logits.device),
        )  # fmt: skip
    return target


def draw_rows(
    logits: Tensor,
    columns: RowColumns,
    rows: Tensor,
    positions: Tensor,
    workspace: SamplingWorkspace,
    *,
    rules: RuleTables | None = None,
    bitmask: Tensor | None = None,
    adjusted: Tensor | None = None,
    has_filters: bool = True,
) -> Tensor:
    """Draw one token per row, greedy, free, ruled and filtered rows mixed, in two launches.

    Args:
        logits: [M, V], bf16/fp16/fp32, rows may be strided; -inf = forbidden. Not written.
        columns: of all rows. temperature > 0 in every row; top_k 0, top_p 1 and min_p 0 filter
            nothing; is_random 0 = argmax; penalties of 1, 0 and 0 and no biases or words change
            nothing.
        rows, positions: [M] int64, the row of each entry and the index of its token, from 0.
        workspace: for at least M rows of V tokens.
        rules: the tables of what rows have said and may not say; None where no row has a rule,
            min_tokens among them.
        bitmask: [M, W] int32, bit = token allowed, those past the last word are not.
        adjusted: memory for logits with rules, [>= M, V] fp32; allocated where it is not given.
        has_filters: whether any row asks for top-k, top-p or min-p.
    Returns: [M] int64. Rules come in the order penalties, biases, words, min_tokens, mask, all in
        fp32 and rounded as torch rounds them. Of equal maxima argmax takes the first. A draw takes
        the first token, in vocabulary order, whose running sum of kept probability exceeds the
        row's uniform at its position times all of it; top-k, then top-p of what top-k kept, then
        min-p; tokens that tie at a border stay together. A row depends on its own values alone. A
        row that holds NaN or +inf gets `BROKEN_ROW`, one of nothing but -inf `EMPTY_ROW`: see
        `draw_outcomes`.
    Raises: KernelInputError if shapes, dtypes or layouts do not fit.
    Source: pivot search as in FlashInfer's sampling (Ye et al. 2025), exact instead of by
        rejection, since one uniform decides; twins: reference.draw_rows, and
        engine.sampling.torch_rules of the rules.
    """
    _check(logits, columns, rows, positions, workspace)
    allowed = reduce_rows(
        logits, columns, rows, positions, workspace, rules=rules, bitmask=bitmask,
        adjusted=adjusted,
    )  # fmt: skip
    num_rows, vocab_size = logits.shape
    num_chunks = workspace.num_chunks
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows:
        _draw_kernel[(num_rows,)](
            allowed, rows, positions, columns.floats, columns.ints, token_ids, workspace.chunk_max,
            workspace.chunk_sum, workspace.group_max, workspace.group_ids, workspace.values,
            vocab_size, num_chunks, allowed.stride(0), columns.floats.stride(0),
            columns.ints.stride(0), HAS_FILTERS=has_filters,
            BLOCK_C=max(16, next_power_of_2(num_chunks)),
            BLOCK_G=next_power_of_2(num_chunks * GROUPS_PER_CHUNK), num_warps=_DRAW_WARPS,
            **dependent_launch(logits.device),
        )  # fmt: skip
    return token_ids
