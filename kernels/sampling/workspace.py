"""The workspace of a draw: columns of the rows' table, memory for summaries of logits."""

# mypy: disable-error-code="no-untyped-call"
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from tokenbus.kernels.launch import ceil_div, require
from tokenbus.kernels.sampling.cut import CAPACITY

if TYPE_CHECKING:
    from torch import Tensor

GROUPS_PER_CHUNK = 64
_CHUNK_TOKENS = 4096


class RowColumns(NamedTuple):
    """The packed table of all rows, as far as a draw reads it.

    floats: [R, F] float32, columns `columns.FLOATS`; ints: [R, I] int64, columns `columns.INTS`;
    stop_ids: [R, S] int64, S a power of two, unused entries below 0. Rows may be strided.
    """

    floats: Tensor
    ints: Tensor
    stop_ids: Tensor


class SamplingWorkspace:
    """Static scratch of `draw_rows` and `score_rows`; holds nothing between their calls.

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
        num_groups = self.num_chunks * GROUPS_PER_CHUNK
        chunks, groups = (max_rows, self.num_chunks), (max_rows, num_groups)
        self.chunk_max = torch.empty(chunks, dtype=torch.float32, device=device)
        self.chunk_sum = torch.empty(chunks, dtype=torch.float32, device=device)
        self.group_max = torch.empty(groups, dtype=torch.float32, device=device)
        self.group_ids = torch.empty(groups, dtype=torch.int32, device=device)
        self.values = torch.empty(max_rows, CAPACITY.value, dtype=torch.float32, device=device)
