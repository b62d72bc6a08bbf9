"""The one pass over all logits: rules applied, every chunk reduced to what a draw needs of it.

A row of V tokens is cut into chunks of 4,096, a program each. Without rules a program reads its
logits and leaves maxima and weights. With rules it also leaves the adjusted logits, in float32,
which are what the draw reads; marks of a byte a token say which logits change at all, so that the
exact counts are read for these alone. Rules on single tokens (biases, forbidden words, stop ids
that come too early) are carried out on the chunk that was just written, by the program that wrote
it. So a step costs one pass whatever is asked, and nothing depends on the rows beside it.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from tokenbus.kernels.launch import release_successor, wait_for_inputs
from tokenbus.kernels.sampling.columns import FLOATS, INTS
from tokenbus.kernels.sampling.cut import GROUP, ROWS
from tokenbus.kernels.sampling.rule_tables import (
    ANY_TOKEN,
    FREQUENCY,
    IN_OUTPUT,
    NUM_WORDS,
    PRESENCE,
    REPETITION,
)

LOG2E = tl.constexpr(1.4426950408889634)
TEMPERATURE = tl.constexpr(FLOATS.index("temperature"))
NUM_BIASES = tl.constexpr(INTS.index("num_biases"))
MIN_TOKENS = tl.constexpr(INTS.index("min_tokens"))
_ANY = tl.constexpr(ANY_TOKEN)
# Entries of a list that a program looks at together: one or two per thread.
_BIASES = tl.constexpr(128)
_WORDS = tl.constexpr(16)


@triton.jit
def chunk_tokens(chunk):
    """Return the groups of a chunk, [ROWS] int32, and their tokens, [ROWS, GROUP] int32."""
    groups = chunk * ROWS + tl.arange(0, ROWS)
    return groups, groups[:, None] * GROUP + tl.arange(0, GROUP)[None, :]


@triton.jit
def reduce_chunk(x, rate):
    """Return a chunk's maximum, its weight in units of the maximum's, and its groups' maxima."""
    tops = tl.max(x, axis=1)
    top = tl.max(tops)
    # A chunk without an allowed token has no maximum to subtract.
    base = tl.where(top == float("-inf"), 0.0, top)
    return top, tl.sum(tl.sum(tl.exp2((x - base) * rate), axis=1)), tops


@triton.jit
def _divide(x, divisor):
    """Return x / divisor, rounded as IEEE asks, by one reciprocal for all (Markstein 1990).

    A quotient is corrected twice by its remainder, which a fused product tells exactly: the first
    time comes within a unit of the last place, the second rounds. A division for each logit would
    be three times as many instructions, with a branch.
    """
    inverse = tl.div_rn(1.0, divisor)
    quotient = x * inverse
    quotient = tl.fma(tl.fma(quotient, -divisor, x), inverse, quotient)
    return tl.fma(tl.fma(quotient, -divisor, x), inverse, quotient)


@triton.jit
def _penalise(x, mark, token, counts, repetition, presence, frequency):
    """Return logits less the penalties of the tokens that the row has said, by their marks.

    As torch computes it, rounded at every step: the same numbers, bit for bit.
    """
    in_output = (mark & IN_OUTPUT) != 0
    scaled = tl.where(x < 0.0, x * repetition, _divide(x, repetition))
    x = tl.where(mark != 0, scaled, x) - tl.where(in_output, presence, 0.0)
    if frequency != 0.0:
        count = tl.load(counts + token, mask=in_output, other=0)
        x -= count.to(tl.float32) * frequency
    return x


@triton.jit
def _add_to_token(adjusted, token, value, first, vocab_size, is_meant):
    """Add to the logits of tokens, [E], those inside the chunk that begins at `first`."""
    here = is_meant & (token >= first) & (token < first + ROWS * GROUP) & (token < vocab_size)
    x = tl.load(adjusted + token, mask=here, other=0.0)
    tl.store(adjusted + token, x + value, mask=here)


@triton.jit
def _adjust_tokens(adjusted, first, vocab_size, num_biases, num_words, is_early, stop_ids, bias_ids,
                   biases, words, history, S: tl.constexpr, L: tl.constexpr):  # fmt: skip
    """Carry out the rules on single tokens over a written chunk: biases, words, stop ids.

    Of one rule a token is named by several entries only where all of them forbid it.
    """
    entries = tl.arange(0, _BIASES)
    for start in range(0, num_biases, _BIASES):
        named = start + entries < num_biases
        token = tl.load(bias_ids + start + entries, mask=named, other=-1)
        value = tl.load(biases + start + entries, mask=named, other=0.0)
        _add_to_token(adjusted, token, value, first, vocab_size, named)
    tl.debug_barrier()
    places = tl.arange(0, L)
    is_last = places == L - 1
    said = tl.load(history + places, mask=is_last == 0, other=0)
    for start in range(0, num_words, _WORDS):
        listed = start + tl.arange(0, _WORDS)
        word = tl.load(words + listed[:, None] * L + places[None, :],
                       mask=(listed < num_words)[:, None], other=-1)  # fmt: skip
        fits = (word == said[None, :]) | (word == _ANY) | is_last[None, :]
        is_due = (tl.min(fits.to(tl.int32), axis=1) > 0) & (listed < num_words)
        token = tl.sum(tl.where(is_last[None, :], word, 0), axis=1)
        _add_to_token(adjusted, token, float("-inf"), first, vocab_size, is_due)
    tl.debug_barrier()
    if is_early:
        token = tl.load(stop_ids + tl.arange(0, S)).to(tl.int32)
        _add_to_token(adjusted, token, float("-inf"), first, vocab_size, token >= 0)
    tl.debug_barrier()


@triton.jit(
    do_not_specialize=["mask_width", "num_marked"],
    do_not_specialize_on_alignment=["rows", "positions", "bitmask"],
)
def pass_kernel(
    logits, rows, positions, floats, ints, stop_ids, bitmask, marks, counts, bias_ids, biases,
    words, history, adjusted, chunk_max, chunk_sum, group_max, vocab_size, mask_width, num_marked,
    logits_stride, adjusted_stride, floats_stride, ints_stride, stops_stride,
    HAS_RULES: tl.constexpr, B: tl.constexpr, W: tl.constexpr, L: tl.constexpr, S: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Adjust one chunk of one row and reduce it."""
    release_successor(PDL)
    chunk = tl.program_id(0)
    num_chunks = tl.num_programs(0)
    index = tl.program_id(1).to(tl.int64)
    wait_for_inputs(PDL)
    row = tl.load(rows + index).to(tl.int64)
    groups, token = chunk_tokens(chunk)
    inside = token < vocab_size
    loaded = tl.load(logits + index * logits_stride + token, mask=inside, other=float("-inf"))
    # What is asked for is on its way before anything is waited for.
    floats += row * floats_stride
    ints += row * ints_stride
    temperature = tl.load(floats + TEMPERATURE)
    if HAS_RULES:
        mark = tl.load(marks + row * vocab_size + token, mask=token < num_marked, other=0)
        repetition = tl.load(floats + REPETITION)
        presence = tl.load(floats + PRESENCE)
        frequency = tl.load(floats + FREQUENCY)
        num_biases = tl.load(ints + NUM_BIASES).to(tl.int32)
        num_words = tl.load(ints + NUM_WORDS).to(tl.int32)
        is_early = tl.load(positions + index) < tl.load(ints + MIN_TOKENS)
    x = loaded.to(tl.float32)
    place = index * num_chunks + chunk
    group_place = index * num_chunks * ROWS + groups
    if HAS_RULES:
        # The marks of a row without penalties are those of a row that was here before.
        if (repetition != 1.0) | (presence != 0.0) | (frequency != 0.0):
            x = _penalise(x, mark.to(tl.int32), token, counts + row * vocab_size, repetition,
                          presence, frequency)  # fmt: skip
        if mask_width > 0:
            word = token // 32
            bits = tl.load(bitmask + index * mask_width + word, mask=word < mask_width, other=0)
            x = tl.where(((bits >> (token % 32)) & 1) != 0, x, float("-inf"))
        adjusted += index * adjusted_stride
        tl.store(adjusted + token, x, mask=inside)
        if (num_biases > 0) | (num_words > 0) | is_early:
            tl.debug_barrier()
            _adjust_tokens(adjusted, chunk * (ROWS * GROUP), vocab_size, num_biases, num_words,
                           is_early, stop_ids + row * stops_stride, bias_ids + row * B,
                           biases + row * B, words + row * (W * L), history + row * L,
                           S, L)  # fmt: skip
            x = tl.load(adjusted + token, mask=inside, other=float("-inf"))
    top, weight, tops = reduce_chunk(x, LOG2E / temperature)
    tl.store(chunk_max + place, top)
    tl.store(chunk_sum + place, weight)
    tl.store(group_max + group_place, tops)
