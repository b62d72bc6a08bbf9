"""Pages and tables of one decode step, to time decode attention on."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from harness import BF16, DEVICE, graph_us, relative_error

from tokenbus.kernels import reference
from tokenbus.kernels.attention.paged_decode import paged_decode
from tokenbus.kernels.attention.prefix_groups import PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork

if TYPE_CHECKING:
    from torch import Tensor

PAGE_SIZE = 64


@dataclass(slots=True)
class DecodeBatch:
    """Pages and tables of one decode step, pages in random order."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    table: Tensor
    lens: Tensor

    @classmethod
    def make(
        cls, lens: list[int], heads: tuple[int, int, int], runs: list[tuple[range, int]]
    ) -> DecodeBatch:
        """Allocate `lens` tokens per row; each run's rows share its number of pages."""
        num_heads, num_kv_heads, head_dim = heads
        counts = [-(-length // PAGE_SIZE) for length in lens]
        held = {row: (run, pages) for run, pages in runs for row in run}
        total = sum(counts) - sum((len(run) - 1) * pages for run, pages in runs)
        order = list(range(1, total + 1))
        random.Random(0).shuffle(order)
        table = torch.zeros(len(lens), max(counts), dtype=torch.int32)
        for row, count in enumerate(counts):
            shared = held[row][1] if row in held and row != held[row][0][0] else 0
            if shared:
                table[row, :shared] = table[held[row][0][0], :shared]
            own = [order.pop() for _ in range(count - shared)]
            table[row, shared:count] = torch.tensor(own, dtype=torch.int32)
        shape = (total + 1, num_kv_heads, PAGE_SIZE, head_dim)
        k_pages, v_pages = (torch.randn(shape, device=DEVICE, dtype=BF16) for _ in range(2))
        q = torch.randn(len(lens), num_heads, head_dim, device=DEVICE, dtype=BF16)
        lengths = torch.tensor(lens, dtype=torch.int32, device=DEVICE)
        return cls(q, k_pages, v_pages, table.to(DEVICE), lengths)

    def measure(
        self, runs: list[tuple[range, int]], *, grouped: bool, least: int = 0
    ) -> tuple[float, float]:
        """Return (relative error, microseconds), merge included, work list not.

        Grouped, runs are read together if they save at least `least` tokens times KV heads.
        """
        num_heads, num_kv_heads, head_dim = self.q.shape[1], *self.k_pages.shape[1::2]
        rows, scale = len(self.lens), head_dim**-0.5
        groups = None
        if grouped:
            groups = PrefixGroups(
                max_rows=rows, page_size=PAGE_SIZE, num_heads=num_heads,
                num_kv_heads=num_kv_heads, device=DEVICE, min_saved_tokens=least,
            )  # fmt: skip
            groups.assign([PrefixGroup(tuple(run), 0, pages) for run, pages in runs])
        work = DecodeWork(
            max_rows=rows, max_pages=self.table.shape[1], page_size=PAGE_SIZE,
            num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim, device=DEVICE,
            groups=groups,
        )  # fmt: skip
        work.build(self.lens)
        pages = (self.k_pages, self.v_pages, self.table)
        out = torch.full_like(self.q, float("nan"))
        some = torch.randperm(rows, device=DEVICE)[:3]
        paged_decode(self.q, *pages, self.lens, work, scale=scale, out=out)
        expected = reference.paged_decode(
            self.q[some], *pages[:2], self.table[some], self.lens[some], scale=scale
        )
        error = relative_error(out[some], expected)

        def launch() -> None:
            # All layers of a step but the first find their list read already.
            for _ in range(4):
                paged_decode(self.q, *pages, self.lens, work, scale=scale, listed=True, out=out)

        return error, graph_us(launch, 4)


def decode_bytes(lens: list[int], heads: tuple[int, int, int]) -> int:
    """Bytes of K and V that the rows see, in bf16."""
    return sum(lens) * heads[1] * heads[2] * 2 * 2
