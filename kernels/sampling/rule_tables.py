"""Tables of the rules on tokens: what each row has said, its biases, its forbidden words.

They are written by three events: a row gets an owner, a token is drawn, and nothing else. What a
row holds counts only while the packed table of rows says so (a penalty that is not neutral, a
number of biases or words above 0), so a row that ends is not cleared.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from tokenbus.kernels.launch import require, require_contiguous
from tokenbus.kernels.sampling.columns import FLOATS, INTS

if TYPE_CHECKING:
    from torch import Tensor

# Bits of a mark: where a row holds a token.
IN_PROMPT = tl.constexpr(1)
IN_OUTPUT = tl.constexpr(2)
# In place of a token of a forbidden word: whatever stands there matches. A history that is too
# short for a word holds a number that no word has.
ANY_TOKEN = -1
NO_TOKEN = -2

REPETITION = tl.constexpr(FLOATS.index("repetition_penalty"))
PRESENCE = tl.constexpr(FLOATS.index("presence_penalty"))
FREQUENCY = tl.constexpr(FLOATS.index("frequency_penalty"))
NUM_WORDS = tl.constexpr(INTS.index("num_words"))

# Bytes and ids that one program moves at a time.
_CLEARED = tl.constexpr(4096)
_IDS = tl.constexpr(256)


class RuleTables:
    """Static tensors of R rows; empty until the first row asks for a rule.

    marks: [R, V] uint8, bits `IN_PROMPT` and `IN_OUTPUT`; counts: [R, V] int32, how often the
    output holds a token, to be read where the mark has `IN_OUTPUT`. A pass reads the marks of a
    row, a byte a token, and the few counts that matter.
    bias_ids: [R, B] int32 and biases: [R, B] float32. words: [R, W, L] int32, right-aligned,
    filled on the left with `ANY_TOKEN`; history: [R, L] int32, the last L - 1 tokens of prompt and
    output, newest last, behind them one place that is never read.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        *,
        max_biases: int,
        max_words: int,
        max_word_length: int,
    ) -> None:
        require(max_word_length & (max_word_length - 1) == 0, "words have a power of two of places")
        self.num_rows = num_rows
        self.vocab_size = vocab_size
        self.max_biases = max_biases
        self.max_words = max_words
        self.max_word_length = max_word_length
        self._device = device
        self.marks = torch.empty(0, dtype=torch.uint8, device=device)
        self.counts = torch.empty(0, dtype=torch.int32, device=device)
        self.bias_ids = torch.empty(0, dtype=torch.int32, device=device)
        self.biases = torch.empty(0, dtype=torch.float32, device=device)
        self.words = torch.empty(0, dtype=torch.int32, device=device)
        self.history = torch.empty(0, dtype=torch.int32, device=device)

    def allocate(self) -> None:
        """Give the tables their memory, once; they stay where they are, so that graphs may read."""
        if self.marks.numel():
            return
        rows, tokens, length = self.num_rows, self.vocab_size, self.max_word_length
        self.marks = torch.empty(rows, tokens, dtype=torch.uint8, device=self._device)
        self.counts = torch.empty(rows, tokens, dtype=torch.int32, device=self._device)
        biases = (rows, self.max_biases)
        self.bias_ids = torch.empty(biases, dtype=torch.int32, device=self._device)
        self.biases = torch.empty(biases, dtype=torch.float32, device=self._device)
        words = (rows, self.max_words, length)
        self.words = torch.empty(words, dtype=torch.int32, device=self._device)
        self.history = torch.empty(rows, length, dtype=torch.int32, device=self._device)


@triton.jit
def _write_kernel(header, token_ids, marks, counts, vocab_size):
    """Write one row anew: clear it, mark its prompt, count its output."""
    header += tl.program_id(0) * 4
    row = tl.load(header).to(tl.int64)
    if row < 0:
        return
    first = tl.load(header + 1)
    num_prompt = tl.load(header + 2)
    num_output = tl.load(header + 3)
    marks += row * vocab_size
    counts += row * vocab_size
    places = tl.arange(0, _CLEARED)
    for start in range(0, vocab_size, _CLEARED):
        inside = start + places < vocab_size
        tl.store(marks + start + places, tl.zeros([_CLEARED], tl.uint8), mask=inside)
        tl.store(counts + start + places, tl.zeros([_CLEARED], tl.int32), mask=inside)
    tl.debug_barrier()
    ids = tl.arange(0, _IDS)
    for start in range(0, num_prompt, _IDS):
        token = tl.load(token_ids + first + start + ids, mask=start + ids < num_prompt, other=-1)
        known = (token >= 0) & (token < vocab_size)
        tl.store(marks + token, tl.full([_IDS], IN_PROMPT, tl.uint8), mask=known)
    tl.debug_barrier()
    first += num_prompt
    for start in range(0, num_output, _IDS):
        token = tl.load(token_ids + first + start + ids, mask=start + ids < num_output, other=-1)
        known = (token >= 0) & (token < vocab_size)
        # Others that hold the same token write the same mark.
        mark = tl.load(marks + token, mask=known, other=0)
        tl.store(marks + token, (mark | IN_OUTPUT).to(tl.uint8), mask=known)
        tl.atomic_add(counts + token, 1, mask=known, sem="relaxed", scope="cta")


def write_rows(tables: RuleTables, header: Tensor, token_ids: Tensor) -> None:
    """Write the marks and counts of rows from the tokens that they hold.

    Args:
        header: [N, 4] int32: row, where its tokens begin, how many the prompt has, and behind them
            how many the output has; rows are distinct, below 0 stands for none.
        token_ids: [T] int32; those outside the vocabulary count for nothing.
    Raises: KernelInputError for other shapes or dtypes.
    """
    require(header.dim() == 2 and header.shape[1] == 4, f"header is {tuple(header.shape)}")
    require(header.dtype == token_ids.dtype == torch.int32, "ids and header have to be int32")
    require_contiguous(header=header, token_ids=token_ids)
    if len(header):
        _write_kernel[(len(header),)](
            header, token_ids, tables.marks, tables.counts, tables.vocab_size, num_warps=8
        )


@triton.jit(do_not_specialize_on_alignment=["rows", "token_ids"])
def _record_kernel(rows, token_ids, floats, ints, marks, counts, history, vocab_size, floats_stride,
                   ints_stride, L: tl.constexpr):  # fmt: skip
    """Enter one token into what its row has said."""
    index = tl.program_id(0)
    row = tl.load(rows + index).to(tl.int64)
    token = tl.load(token_ids + index)
    token = tl.minimum(tl.maximum(token, 0), vocab_size - 1)
    floats += row * floats_stride
    penalises = tl.load(floats + REPETITION) != 1.0
    penalises = penalises | (tl.load(floats + PRESENCE) != 0.0)
    penalises = penalises | (tl.load(floats + FREQUENCY) != 0.0)
    if penalises:
        place = row * vocab_size + token
        tl.store(marks + place, (tl.load(marks + place) | IN_OUTPUT).to(tl.uint8))
        tl.store(counts + place, tl.load(counts + place) + 1)
    if tl.load(ints + row * ints_stride + NUM_WORDS) > 0:
        history += row * L
        places = tl.arange(0, L)
        older = tl.load(history + places + 1, mask=places < L - 2, other=0)
        tl.debug_barrier()
        newer = tl.where(places == L - 2, token.to(tl.int32), older)
        tl.store(history + places, newer, mask=places < L - 1)


def record_tokens(
    tables: RuleTables, floats: Tensor, ints: Tensor, rows: Tensor, token_ids: Tensor
) -> None:
    """Enter one drawn token per row, as far as the row has penalties or forbidden words.

    Args:
        floats, ints: the packed table of all rows, `columns.FLOATS` and `columns.INTS` wide.
        rows, token_ids: [M] int64; rows are distinct, except for rows without rules. A token below
            0 counts as token 0.
    """
    require(rows.shape == token_ids.shape, f"{len(rows)} rows, {len(token_ids)} tokens")
    require_contiguous(rows=rows, token_ids=token_ids)
    if len(rows):
        _record_kernel[(len(rows),)](
            rows, token_ids, floats, ints, tables.marks, tables.counts, tables.history,
            tables.vocab_size, floats.stride(0), ints.stride(0), L=tables.max_word_length,
            num_warps=1,
        )  # fmt: skip
