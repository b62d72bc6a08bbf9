"""Prefix groups on the device: which running sequences read which shared pages together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np
import torch

from tokenbus.kernels.launch import ceil_div, require

if TYPE_CHECKING:
    from collections.abc import Sequence

# Parts of one shared run; two levels of runs fit the buffers of DecodeWork.
MAX_RUN_PARTS = 16
# A run shorter than this many pages per part spends more on merging than it wins.
MIN_RUN_PART_PAGES = 4
# An item longer than this would finish alone, after everything else.
MAX_RUN_PART_PAGES = 32
# Tokens of K (and V) that all runs together have to save, counted per KV head and row, before
# stacked tiles beat the plain ones: for runs of 1,024 tokens and more on an H200 0.95 x at 57k,
# 1.12 x and better from 131k on.
MIN_SAVED_TOKENS = 100_000
# Rows of one tile of the matrix unit: less would only be padding.
_LEAST_TILE_ROWS = 16
ITEM_FIELDS = 8


@dataclass(frozen=True, slots=True)
class PrefixGroup:
    """Rows of the batch whose block tables hold the same pages in [first_page, end_page).

    All pages are full. A run that follows another (second level) starts where that one ends, and
    its rows all belong to it. Every row keeps at least one token after its last run.
    """

    rows: tuple[int, ...]
    first_page: int
    end_page: int


class PrefixGroups:
    """Device tables of the groups, filled by the host when the batch changes.

    items: [capacity, 8] int32, in the layout of DecodeWork.items.
    members: [2 * max_rows] int32, rows of the batch, group after group.
    shared_pages, shared_parts: [max_rows] int32, where a row's own pages begin and how many
    partial results its runs leave. num_items: [1] int32. All live in one tensor, the items last, so
    that a change is one copy of what is in use; an empty table costs a launch nothing.
    """

    def __init__(
        self,
        *,
        max_rows: int,
        page_size: int,
        num_heads: int,
        num_kv_heads: int,
        device: torch.device,
        tile_rows: int = 64,
        num_processors: int = 132,
        min_saved_tokens: int = MIN_SAVED_TOKENS,
    ) -> None:
        require(num_heads // num_kv_heads <= tile_rows, f"{num_heads // num_kv_heads} heads a KV")
        self.page_size = page_size
        self.max_rows = max_rows
        self.tile_rows = tile_rows
        self.members_per_tile = tile_rows * num_kv_heads // num_heads
        self._num_kv_heads = num_kv_heads
        self._num_processors = num_processors
        self._min_saved_tokens = min_saved_tokens
        # Every group has at least two rows, and a row is in at most two runs.
        self.capacity = (2 * ceil_div(max_rows, self.members_per_tile) + max_rows) * MAX_RUN_PARTS
        sizes = (max_rows, max_rows, 1, 2 * max_rows, ITEM_FIELDS * self.capacity)
        # Parts begin at multiples of 16 bytes: kernels are compiled apart for other addresses.
        self._starts = [0, *accumulate(ceil_div(size, 4) * 4 for size in sizes)]
        self._table = torch.zeros(self._starts[-1], dtype=torch.int32, device=device)
        self.shared_pages, self.shared_parts, self.num_items, self.members, items = (
            self._table[start : start + size]
            for start, size in zip(self._starts, sizes, strict=False)
        )
        self.items = items.view(self.capacity, ITEM_FIELDS)
        self._is_empty = True

    @property
    def is_empty(self) -> bool:
        """Whether no rows are read together."""
        return self._is_empty

    def clear(self) -> None:
        """Dissolve all groups."""
        self.assign(())

    def assign(self, groups: Sequence[PrefixGroup]) -> None:
        """Replace all groups; takes effect for the next work list built on this stream.

        Groups that together save less than `min_saved_tokens` are left apart.

        Raises: KernelInputError if a group's rows do not all stand at its first page.
        """
        saved = sum((len(g.rows) - 1) * (g.end_page - g.first_page) for g in groups)
        if saved * self.page_size * self._num_kv_heads < self._min_saved_tokens:
            groups = ()
        if not groups and self._is_empty:
            return
        pages = [0] * self.max_rows
        parts = [0] * self.max_rows
        members: list[int] = []
        items: list[list[int]] = []
        ordered = sorted(groups, key=lambda group: (group.first_page, -len(group.rows)))
        tile_members, num_tiles = self._choose_tiles(ordered)
        for group in ordered:
            first_part = parts[group.rows[0]]
            run_parts = self._cut(group, tile_members, num_tiles, first_part, len(members), items)
            for row in group.rows:
                require(
                    pages[row] == group.first_page and parts[row] == first_part,
                    f"row {row} stands at page {pages[row]}, its run starts at {group.first_page}",
                )
            for row in group.rows:
                pages[row] = group.end_page
                parts[row] += run_parts
            members.extend(group.rows)
        self._upload(items, members, pages, parts)
        self._is_empty = not groups

    def _choose_tiles(self, groups: Sequence[PrefixGroup]) -> tuple[int, int]:
        """Return how many rows share a tile, and the number of tiles.

        The last part of a tile to end merges all its rows, so few rows are spread over more tiles
        than they would fill, at the price of reading their run once for each.
        """
        members = self.members_per_tile
        while True:
            num_tiles = sum(ceil_div(len(group.rows), members) for group in groups)
            spread = num_tiles * self._num_kv_heads * 8 >= self._num_processors * 3
            halved = members * self.tile_rows // self.members_per_tile // 2
            if spread or halved < _LEAST_TILE_ROWS:
                return members, num_tiles
            members //= 2

    def _cut(
        self,
        group: PrefixGroup,
        tile_members: int,
        num_tiles: int,
        first_part: int,
        first_member: int,
        items: list[list[int]],
    ) -> int:
        """Append the items of one run, longest first, and return its number of parts."""
        num_pages = group.end_page - group.first_page
        require(len(group.rows) > 1 and num_pages > 0, f"a group needs rows and pages: {group}")
        # All runs together give each multiprocessor one item; own suffixes fill the rest.
        wanted = ceil_div(self._num_processors, num_tiles * self._num_kv_heads)
        wanted = min(wanted, num_pages // MIN_RUN_PART_PAGES)
        wanted = max(wanted, ceil_div(num_pages, MAX_RUN_PART_PAGES), 1)
        part_pages = ceil_div(num_pages, min(wanted, MAX_RUN_PARTS))
        run_parts = ceil_div(num_pages, part_pages)
        for part in range(run_parts):
            begin = group.first_page + part * part_pages
            end = min(begin + part_pages, group.end_page)
            tokens = [begin * self.page_size, end * self.page_size, first_part + part, 0]
            for start in range(0, len(group.rows), tile_members):
                count = min(tile_members, len(group.rows) - start)
                items.append([group.rows[0], *tokens, count, first_member + start, 0])
        return run_parts

    def _upload(
        self, items: list[list[int]], members: list[int], pages: list[int], parts: list[int]
    ) -> None:
        """Write all tables with one copy."""
        require(len(items) <= self.capacity, f"{len(items)} items, room for {self.capacity}")
        require(len(members) <= 2 * self.max_rows, f"{len(members)} members in two levels of runs")
        flat = [field for item in items for field in item]
        parts_of_table = (pages, parts, [len(items)], members, flat)
        # A whole table of zeros in pinned memory cost 2.7 ms for 512 rows, most of it threads.
        staging = np.zeros(self._starts[-2] + len(flat), np.int32)
        for start, values in zip(self._starts, parts_of_table, strict=False):
            staging[start : start + len(values)] = values
        host = torch.from_numpy(staging)
        if self._table.is_cuda:
            host = host.pin_memory()
        self._table[: len(staging)].copy_(host, non_blocking=self._table.is_cuda)
