"""Device functions of the filters: the cut of top-k, top-p and min-p without sorting a row.

Top-k and top-p ask for the same thing: the smallest value v of a row whose F(v) is below a target,
where F(v) counts, or weighs, the tokens above v. F falls as v rises, so v is found by evaluating F
at a few pivots at a time. Maxima of groups of 64 tokens give a first bound that leaves most groups
unread; the candidates in it are listed, and the search runs over the list. A row too flat for the
list is narrowed by passes over its groups until the rest fits, so that any row ends with the exact
cut. Sums run in a fixed order: a cut depends on the row alone.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

# Tokens of a group, whose maximum is kept, and groups of a block, read at a time.
GROUP = tl.constexpr(64)
ROWS = tl.constexpr(64)
# Candidates that are searched in a list: the nucleus of a peaked row, 32 kB that stay in L1.
CAPACITY = tl.constexpr(8192)
# A pass over the list waits for memory, one over the row is short of arithmetic: 16 and 4 pivots.
LIST_BLOCK = tl.constexpr(512)
LIST_PIVOTS = tl.constexpr(16)
ROW_PIVOTS = tl.constexpr(4)
# Groups of a block in a pass over the row: few rows need one, and large ones compile slowly.
PASS_ROWS = tl.constexpr(16)
# A nucleus is looked for among the groups of the largest maxima first: most are that small.
GUESSED_GROUPS = tl.constexpr(256)
# 16 pivots end a search over all of fp32 in 8 rounds, 4 over clustered values in some 20.
MAX_ROUNDS = tl.constexpr(64)


@triton.jit
def load_block(row, group_ids, block, num_groups, vocab_size, NUM: tl.constexpr = ROWS):
    """Load one block of NUM listed groups: logits and token ids, [NUM, GROUP]; absent = -inf."""
    place = block * NUM + tl.arange(0, NUM)
    group = tl.load(group_ids + place, mask=place < num_groups, other=1 << 24)
    token = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    x = tl.load(row + token, mask=token < vocab_size, other=float("-inf")).to(tl.float32)
    return x, token


@triton.jit
def keep_groups(group_max, group_ids, num_groups, bound, BLOCK_G: tl.constexpr):
    """List, in order, the groups that hold a token >= bound, and return how many there are."""
    offs = tl.arange(0, BLOCK_G)
    top = tl.load(group_max + offs, mask=offs < num_groups, other=float("-inf"))
    keep = (top >= bound) & (top > float("-inf"))
    place = tl.cumsum(keep.to(tl.int32), axis=0) - 1
    tl.debug_barrier()
    tl.store(group_ids + place, offs, mask=keep)
    tl.debug_barrier()
    return tl.sum(keep.to(tl.int32))


@triton.jit
def _kth_bound(group_max, num_groups, k, top, BLOCK_G: tl.constexpr):
    """Return a value that at least k groups reach, -inf if fewer have a finite maximum."""
    offs = tl.arange(0, BLOCK_G)
    maxima = tl.load(group_max + offs, mask=offs < num_groups, other=float("-inf"))
    finite = maxima > float("-inf")
    low = tl.min(tl.where(finite, maxima, top))
    high = top
    # 12 halvings leave 1/4096 of the range: about the k candidates that are needed.
    for _ in range(12):
        middle = low + (high - low) * 0.5
        is_reached = tl.sum((maxima >= middle).to(tl.int32)) >= k
        low = tl.where(is_reached, middle, low)
        high = tl.where(is_reached, high, middle)
    return tl.where(tl.sum(finite.to(tl.int32)) >= k, low, float("-inf"))


@triton.jit
def _lowest(row, group_ids, num_groups, vocab_size):
    """Return the smallest finite logit of the listed groups."""
    least = tl.full([ROWS, GROUP], float("inf"), tl.float32)
    for block in range(0, (num_groups + ROWS - 1) // ROWS):
        x, _ = load_block(row, group_ids, block, num_groups, vocab_size)
        least = tl.minimum(least, tl.where(x > float("-inf"), x, float("inf")))
    return tl.min(least)


@triton.jit
def _below(value):
    """Return a number a few units in the last place under a finite `value`."""
    return value - tl.maximum(tl.abs(value) * 1e-6, 1e-30)


@triton.jit
def _gather(row, group_ids, num_groups, values, vocab_size, low, high):
    """List the logits in (low, high] and return their number; over CAPACITY it is a part only."""
    num_blocks = (num_groups + ROWS - 1) // ROWS
    count = 0
    block = 0
    tl.debug_barrier()
    while (block < num_blocks) & (count <= CAPACITY):
        x, _ = load_block(row, group_ids, block, num_groups, vocab_size)
        keep = ((x > low) & (x <= high)).to(tl.int32)
        in_group = tl.sum(keep, axis=1)
        first = count + tl.cumsum(in_group, axis=0) - in_group
        place = first[:, None] + tl.cumsum(keep, axis=1) - 1
        tl.store(values + place, x, mask=(keep > 0) & (place < CAPACITY))
        count += tl.sum(in_group)
        block += 1
    tl.debug_barrier()
    return count


@triton.jit
def _tally(x, above, least, most, pivots, low, high, top, rate, is_mass):
    """Add logits x [E] to F at each pivot, [P, E], and to the extremes inside (low, high], [E]."""
    weight = tl.where(is_mass, tl.exp2((x - top) * rate), 1.0)
    above += tl.where(x[None, :] > pivots[:, None], weight[None, :], 0.0)
    inside = (x > low) & (x <= high)
    least = tl.minimum(least, tl.where(inside, x, float("inf")))
    most = tl.maximum(most, tl.where(inside, x, float("-inf")))
    return above, least, most


@triton.jit
def _narrow(pivots, above, least, most, low, high, above_high, target):
    """Return the bracket (low, high] of the cut, F(high), and the extremes of the former bracket.

    Equal extremes are the cut. If F(low) is short of the target, low itself is.
    """
    is_short = above < target
    lowest, highest = tl.min(least), tl.max(most)
    first = tl.max(above)
    lowest = tl.where(first < target, low, lowest)
    highest = tl.where(first < target, low, highest)
    low = tl.maximum(low, tl.max(tl.where(is_short, float("-inf"), pivots)))
    high = tl.minimum(high, tl.min(tl.where(is_short, pivots, float("inf"))))
    above_high = tl.maximum(above_high, tl.max(tl.where(is_short, above, 0.0)))
    return low, high, above_high, lowest, highest


@triton.jit
def _pass_list(values, count, low, high, above_high, list_above, top, rate, target,
               is_mass):  # fmt: skip
    """Narrow the bracket by one pass over the list, above which F is `list_above`."""
    pivots = low + (high - low) * (tl.arange(0, LIST_PIVOTS) / LIST_PIVOTS)
    above = tl.zeros([LIST_PIVOTS, LIST_BLOCK], tl.float32)
    least = tl.full([LIST_BLOCK], float("inf"), tl.float32)
    most = tl.full([LIST_BLOCK], float("-inf"), tl.float32)
    for start in range(0, count, LIST_BLOCK):
        offs = start + tl.arange(0, LIST_BLOCK)
        x = tl.load(values + offs, mask=offs < count, other=float("-inf"))
        above, least, most = _tally(x, above, least, most, pivots, low, high, top, rate, is_mass)
    return _narrow(pivots, list_above + tl.sum(above, axis=1), least, most, low, high, above_high,
                   target)  # fmt: skip


@triton.jit
def _pass_row(row, group_ids, num_groups, vocab_size, low, high, above_high, top, rate, target,
              is_mass):  # fmt: skip
    """Narrow the bracket by one pass over all listed groups."""
    pivots = low + (high - low) * (tl.arange(0, ROW_PIVOTS) / ROW_PIVOTS)
    above = tl.zeros([ROW_PIVOTS, PASS_ROWS * GROUP], tl.float32)
    least = tl.full([PASS_ROWS * GROUP], float("inf"), tl.float32)
    most = tl.full([PASS_ROWS * GROUP], float("-inf"), tl.float32)
    for block in range(0, (num_groups + PASS_ROWS - 1) // PASS_ROWS):
        x, _ = load_block(row, group_ids, block, num_groups, vocab_size, PASS_ROWS)
        x = tl.reshape(x, [PASS_ROWS * GROUP])
        above, least, most = _tally(x, above, least, most, pivots, low, high, top, rate, is_mass)
    return _narrow(pivots, tl.sum(above, axis=1), least, most, low, high, above_high, target)


@triton.jit
def _find_cut(row, group_ids, num_groups, values, vocab_size, low, top, rate, target,
              is_mass):  # fmt: skip
    """Return the smallest logit v in (low, top] with F(v) < target, `low` if F(low) is below it."""
    high = top
    above_high = tl.zeros([], tl.float32)
    list_above = above_high
    least = low
    most = top
    count = _gather(row, group_ids, num_groups, values, vocab_size, low, high)
    rounds = 0
    while (least < most) & (rounds < MAX_ROUNDS):
        if count <= CAPACITY:
            low, high, above_high, least, most = _pass_list(
                values, count, low, high, above_high, list_above, top, rate, target, is_mass
            )
        else:
            low, high, above_high, least, most = _pass_row(
                row, group_ids, num_groups, vocab_size, low, high, above_high, top, rate, target,
                is_mass,
            )  # fmt: skip
            count = _gather(row, group_ids, num_groups, values, vocab_size, low, high)
            list_above = above_high
        rounds += 1
    return tl.minimum(least, high)


@triton.jit
def _mass_of_top(row, group_ids, num_groups, vocab_size, cut, top, rate, k):
    """Return the weight of the k largest tokens, `cut` being the k-th; ties count up to k."""
    mass = tl.zeros([ROWS, GROUP], tl.float32)
    num_above = tl.zeros([ROWS, GROUP], tl.int32)
    num_equal = tl.zeros([ROWS, GROUP], tl.int32)
    for block in range(0, (num_groups + ROWS - 1) // ROWS):
        x, _ = load_block(row, group_ids, block, num_groups, vocab_size)
        mass += tl.where(x > cut, tl.exp2((x - top) * rate), 0.0)
        num_above += (x > cut).to(tl.int32)
        num_equal += (x == cut).to(tl.int32)
    ties = tl.minimum(tl.sum(num_equal), k - tl.sum(num_above))
    return tl.sum(mass) + ties * tl.exp2((cut - top) * rate)


@triton.jit
def filter_row(row, group_max, group_ids, values, vocab_size, num_groups, top, total, rate, k,
               top_p, min_p, BLOCK_G: tl.constexpr):  # fmt: skip
    """Return the cut of all filters and how many groups reach it; `group_ids` lists these.

    `top` is the row's maximum, `total` the weight of all tokens, exp2((x - top) * rate) each.
    k 0, top_p 1 and min_p 0 filter nothing. One search serves top-k and top-p, in up to three
    stages: the k-th token, the nucleus among a few groups, the nucleus among all that can hold it.
    A copy of the search for each would be compiled for three times as long.
    """
    has_k = k > 0
    has_p = top_p < 1.0
    cut = tl.full([], float("-inf"), tl.float32)
    if min_p > 0.0:
        cut = top + tl.log2(min_p) / rate
    floor = tl.full([], float("-inf"), tl.float32)
    if has_p & (has_k == 0):
        # All tokens below the floor together weigh half of what top-p drops.
        tail = tl.log2(tl.maximum(0.5 * (1.0 - top_p) * total / vocab_size, 1e-37))
        floor = tl.maximum(cut, top + tail / rate)
    stage = tl.where(has_k, 0, tl.where(has_p, 1, 3))
    while stage < 3:
        bound = floor
        if (stage == 0) | ((stage == 1) & (has_k == 0)):
            wanted = tl.where(has_k, k, GUESSED_GROUPS)
            bound = tl.maximum(floor, _kth_bound(group_max, num_groups, wanted, top, BLOCK_G))
        num_listed = keep_groups(group_max, group_ids, num_groups, bound, BLOCK_G)
        low = bound
        if low == float("-inf"):
            low = _lowest(row, group_ids, num_listed, vocab_size)
        low = _below(low)
        target = tl.where(stage == 0, k.to(tl.float32), top_p * total)
        found = _find_cut(row, group_ids, num_listed, values, vocab_size, low, top, rate, target,
                          stage > 0)  # fmt: skip
        is_short = (stage == 1) & (found <= low) & (bound > floor)
        cut = tl.where(is_short, cut, tl.maximum(cut, found))
        if stage == 0:
            floor = found
            if has_p:
                total = _mass_of_top(row, group_ids, num_listed, vocab_size, found, top, rate, k)
        stage = tl.where(is_short, 2, tl.where((stage == 0) & has_p, 1, 3))
    return cut, keep_groups(group_max, group_ids, num_groups, cut, BLOCK_G)
