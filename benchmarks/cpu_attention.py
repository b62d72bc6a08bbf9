"""What decode attention takes on a CPU: shared runs read once or per row, and long contexts.

    python -P benchmarks/cpu_attention.py [--threads N]

Every case has the heads of SmolLM2-135M, bfloat16, and 30 layers with pages of their own, run one
after the other as in a step, so that a layer's pages have left the inner caches when it is read.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.native_library import native_library
from tokenbus.engine.scheduling.prefix_grouping import SharedRun

if TYPE_CHECKING:
    from tokenbus.kernels.cpu.native import NativeLibrary

_NUM_LAYERS = 30
_PAGE_SIZE = 16
_SPECS = [AttentionSpec(idx, 9, 3, 64, 64**-0.5) for idx in range(_NUM_LAYERS)]
_OWN_TOKENS = 96
# Smaller pools get no huge pages.
_MIN_PAGES = 1500
_SHARED = [
    (rows, groups, tokens)
    for tokens in (128, 256, 512, 2048)
    for rows, groups in ((4, 1), (8, 1), (24, 3), (32, 1))
]
_LONG = [(1, 512), (1, 2048), (1, 8192), (2, 2048), (3, 2048)]


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that decode, `groups` sets of them with `shared` tokens in common."""

    rows: int
    groups: int
    shared: int
    own: int

    def context(self, library: NativeLibrary) -> tuple[ForwardContext, list[SharedRun]]:
        """Lay the rows out in pages of random order, on huge pages as the engine's are."""
        shared, own = self.shared // _PAGE_SIZE, -(-self.own // _PAGE_SIZE)
        num_pages = max(_MIN_PAGES, 1 + self.groups * shared + self.rows * own)
        kv = KVCache(_SPECS, num_pages, _PAGE_SIZE, torch.bfloat16, torch.device("cpu"))
        for pages in (*kv.k, *kv.v):
            library.use_huge_pages(pages)
            pages.normal_()
        free = (1 + torch.randperm(num_pages - 1)).tolist()
        heads = [[free.pop() for _ in range(shared)] for _ in range(self.groups)]
        size = self.rows // self.groups
        tables = [heads[row // size] + [free.pop() for _ in range(own)] for row in range(self.rows)]
        table = torch.tensor(tables, dtype=torch.int32)
        length = self.shared + self.own
        positions = torch.full((self.rows,), length - 1)
        ctx = ForwardContext(
            kv=kv,
            positions=positions,
            slot_mapping=table[:, -1].long() * _PAGE_SIZE + (length - 1) % _PAGE_SIZE,
            block_table=table,
            context_lens=torch.full((self.rows,), length, dtype=torch.int32),
            cu_seqlens_q=torch.arange(self.rows + 1, dtype=torch.int32),
            query_lens=[1] * self.rows,
            context_lens_host=[length] * self.rows,
            num_decode=self.rows,
        )
        runs = [
            SharedRun(tuple(range(group * size, (group + 1) * size)), 0, shared)
            for group in range(self.groups)
        ]
        return ctx, runs


def layer_us(attention: NativeAttention, ctx: ForwardContext, runs: list[SharedRun]) -> float:
    """Return the least time of a layer in microseconds."""
    attention.assign_runs(runs)
    ctx.memo.clear()
    rows = ctx.positions.shape[0]
    q = torch.randn(rows, 9, 64).bfloat16()
    kv = torch.randn(rows, 3, 64).bfloat16()
    times = []
    for _ in range(12):
        started_at = time.perf_counter()
        for spec in _SPECS:
            attention.attend(q, kv, kv, spec, ctx)
        times.append(time.perf_counter() - started_at)
    return min(times) / _NUM_LAYERS * 1e6


def main() -> None:
    """Print a line per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    torch.set_num_threads(parser.parse_args().threads)
    library = native_library()
    if library is None:
        raise SystemExit("there is no C++ compiler")
    attention = NativeAttention(library)
    for rows, groups, shared in _SHARED:
        ctx, runs = _Batch(rows, groups, shared, _OWN_TOKENS).context(library)
        apart, together = layer_us(attention, ctx, []), layer_us(attention, ctx, runs)
        print(
            f"{rows} rows, {groups} x {shared} shared: {apart:.1f} us a layer row by row,"
            f" {together:.1f} together, {apart / together:.2f} x",
            flush=True,
        )
    for rows, tokens in _LONG:
        ctx, _ = _Batch(rows, rows, 0, tokens).context(library)
        print(f"{rows} x {tokens}: {layer_us(attention, ctx, []):.1f} us a layer", flush=True)


if __name__ == "__main__":
    main()
