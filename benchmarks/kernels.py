"""Sweep every kernel against its torch twin: error, time, bandwidth, share of the ceiling.

    python -P benchmarks/kernels.py [--section NAME ...] [--json FILE]

Ceilings are measured in the same run. Times are medians of CUDA-graph replays. Linears and
elementwise kernels rotate through enough weights to miss the L2 cache.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokenbus.kernels import reference
from tokenbus.kernels.activation import gated_act
from tokenbus.kernels.embedding import embed
from tokenbus.kernels.linear import Fusion, small_linear
from tokenbus.kernels.norm import add_rms_norm
from tokenbus.kernels.paged_decode import paged_decode
from tokenbus.kernels.prefix_groups import PrefixGroup, PrefixGroups
from tokenbus.kernels.qkv_rope import qkv_rope
from tokenbus.kernels.work_list import DecodeWork

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

DEVICE = torch.device("cuda")
BF16 = torch.bfloat16
PAGE_SIZE = 64
# More than the 60 MB of an H200's L2, several times over.
ROTATED_BYTES = 300_000_000


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `bytes_moved` counts what the op has to read and write once."""

    section: str
    name: str
    error: float
    microseconds: float
    tb_per_s: float
    of_ceiling: float
    note: str = ""


def median_us(replay: Callable[[], None], repeats: int = 20) -> float:
    """Time `replay` by events and return the median in microseconds."""
    for _ in range(2):
        replay()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        replay()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times)[repeats // 2]


def graph_us(launch: Callable[[], object], calls: int) -> float:
    """Capture `launch`, which makes `calls` calls, and return microseconds per call."""
    launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        launch()
    return median_us(graph.replay) / calls


def relative_error(out: Tensor, expected: Tensor) -> float:
    """Return |out - expected| / |expected|; NaN if anything is NaN."""
    return float((out.float() - expected.float()).norm() / expected.float().norm())


class Sweep:
    """Collects rows and knows the ceiling."""

    def __init__(self) -> None:
        source = torch.randn(2**29, device=DEVICE, dtype=BF16)
        target = torch.empty_like(source)
        time = median_us(lambda: target.copy_(source))
        self.copy_tb_per_s = 2 * source.nbytes / time / 1e6
        self.rows: list[Row] = []
        print(f"{torch.cuda.get_device_name()}: copy {self.copy_tb_per_s:.2f} TB/s")

    def add(
        self, section: str, name: str, error: float, time: float, moved: int, note: str = ""
    ) -> None:
        """Record and print one case; stop at a wrong result."""
        speed = moved / time / 1e6
        row = Row(section, name, error, time, speed, speed / self.copy_tb_per_s, note)
        self.rows.append(row)
        print(
            f"{section:8} {name:34} err {error:.1e} {time:9.2f} us {speed:6.2f} TB/s"
            f" {row.of_ceiling:5.0%} {note}",
            flush=True,
        )
        if not error < 1e-2:
            sys.exit(f"{section} {name}: relative error {error}")


@dataclass(slots=True)
class Batch:
    """Pages and tables of one decode step, pages in random order."""

    q: Tensor
    k_pages: Tensor
    v_pages: Tensor
    table: Tensor
    lens: Tensor

    @classmethod
    def make(
        cls, lens: list[int], heads: tuple[int, int, int], runs: list[tuple[range, int]]
    ) -> Batch:
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

    def measure(self, runs: list[tuple[range, int]], *, grouped: bool) -> tuple[float, float]:
        """Return (relative error, microseconds), merge included, work list not."""
        num_heads, num_kv_heads, head_dim = self.q.shape[1], *self.k_pages.shape[1::2]
        rows, scale = len(self.lens), head_dim**-0.5
        shape = {"page_size": PAGE_SIZE, "num_heads": num_heads, "num_kv_heads": num_kv_heads}
        groups = PrefixGroups(max_rows=rows, device=DEVICE, **shape) if grouped else None
        if groups is not None:
            groups.assign([PrefixGroup(tuple(run), 0, pages) for run, pages in runs])
        work = DecodeWork(
            max_rows=rows, max_pages=self.table.shape[1], head_dim=head_dim, device=DEVICE,
            groups=groups, **shape,
        )  # fmt: skip
        work.build(self.lens)
        pages = (self.k_pages, self.v_pages, self.table)
        out = torch.full_like(self.q, float("nan"))
        some = torch.randperm(rows, device=DEVICE)[:6]
        paged_decode(self.q, *pages, self.lens, work, scale=scale, out=out)
        expected = reference.paged_decode(
            self.q[some], *pages[:2], self.table[some], self.lens[some], scale=scale
        )
        error = relative_error(out[some], expected)

        def launch() -> None:
            for _ in range(4):
                paged_decode(self.q, *pages, self.lens, work, scale=scale, out=out)

        return error, graph_us(launch, 4)


def decode_bytes(lens: list[int], heads: tuple[int, int, int]) -> int:
    """Bytes of K and V that the rows see, in bf16."""
    return sum(lens) * heads[1] * heads[2] * 2 * 2


def sweep_decode(sweep: Sweep) -> None:
    """Head dims, group sizes, context lengths and mixed batches, with and without the run code."""
    rng = random.Random(0)
    mixed = [rng.randint(100, 2048) for _ in range(256)]
    cases: list[tuple[str, list[int], tuple[int, int, int]]] = [
        ("mixed 256", mixed, (16, 8, 128)),
        ("mixed 256", mixed, (32, 8, 128)),
        *(("mixed 256", mixed, (8 * group, 8, dim)) for dim in (64, 128) for group in (1, 2, 4, 8)),
        *((f"1 x {tokens}", [tokens], (16, 8, 128)) for tokens in (1, 100, 350, 1024, 4096)),
        *((f"1 x {tokens}", [tokens], (32, 8, 128)) for tokens in (8192, 32768)),
        ("1 x 32768", [32768], (16, 8, 128)),
        ("8 x 350", [350] * 8, (16, 8, 128)),
        ("64 x 4096", [4096] * 64, (32, 8, 128)),
    ]
    for name, lens, heads in cases:
        batch = Batch.make(lens, heads, [])
        for grouped in (False, True):
            error, time = batch.measure([], grouped=grouped)
            label = f"{name} Hq{heads[0]} Hkv{heads[1]} D{heads[2]}"
            note = "run code compiled in" if grouped else ""
            sweep.add("decode", label, error, time, decode_bytes(lens, heads), note)


def sweep_shared(sweep: Sweep) -> None:
    """Shared runs against reading the same shared pages row by row."""
    for heads in ((16, 8, 128), (32, 8, 128)):
        for num_groups in (1, 4, 16):
            for tokens in (256, 1024, 2048, 4096, 16384):
                for rows in (8, 64, 256, 512):
                    if rows < 2 * num_groups or rows * tokens > 512 * 4096:
                        continue
                    size = rows // num_groups
                    runs = [
                        (range(g * size, (g + 1) * size), tokens // PAGE_SIZE)
                        for g in range(num_groups)
                    ]
                    lens = [tokens + 164] * rows
                    batch = Batch.make(lens, heads, runs)
                    _, flat = batch.measure(runs, grouped=False)
                    error, time = batch.measure(runs, grouped=True)
                    moved = decode_bytes([164] * rows + [tokens] * num_groups, heads)
                    name = f"{rows} x {tokens} in {num_groups} Hq{heads[0]}"
                    note = f"flat {flat:.1f} us, {flat / time:.2f} x"
                    sweep.add("shared", name, error, time, moved, note)


LINEARS: dict[str, tuple[int, int, bool]] = {
    "0.6b qkv": (1024, 4096, False),
    "0.6b o": (2048, 1024, False),
    "0.6b gate_up": (1024, 3072, True),
    "0.6b down": (3072, 1024, False),
    "0.6b head": (1024, 151936, False),
    "8b qkv": (4096, 6144, False),
    "8b o": (4096, 4096, False),
    "8b gate_up": (4096, 14336, True),
    "8b down": (14336, 4096, False),
    "8b head": (4096, 128256, False),
}


def sweep_linear(sweep: Sweep) -> None:
    """Small linears with their fusions against bare cuBLAS on the same weights."""
    for name, (width_in, width_out, gated) in LINEARS.items():
        height = width_out * (2 if gated else 1)
        copies = ROTATED_BYTES // (height * width_in * 2) + 1
        weights = [
            torch.randn(height, width_in, device=DEVICE, dtype=BF16) * width_in**-0.5
            for _ in range(copies)
        ]
        normed = name.split()[1] in ("qkv", "gate_up", "head")
        for rows in (1, 2, 4, 8, 16):
            x = torch.randn(rows, width_in, device=DEVICE, dtype=BF16)
            fusion = Fusion(
                norm_weight=torch.randn(width_in, device=DEVICE, dtype=BF16) if normed else None,
                act="silu" if gated else None,
                residual=None if normed else torch.randn(rows, width_out, device=DEVICE).to(BF16),
            )
            out = small_linear(x, weights[0], fusion)
            expected = reference.fused_linear(
                x, weights[0], norm_weight=fusion.norm_weight, act=fusion.act,
                residual=fusion.residual,
            )  # fmt: skip
            error = relative_error(out, expected)
            time = graph_us(lambda: [small_linear(x, w, fusion, out=out) for w in weights], copies)  # noqa: B023
            blas = graph_us(lambda: [torch.nn.functional.linear(x, w) for w in weights], copies)  # noqa: B023
            moved = height * width_in * 2
            sweep.add("linear", f"{name} M{rows}", error, time, moved, f"cuBLAS {blas:.2f} us")


def sweep_fused(sweep: Sweep) -> None:
    """Norm, rotary with page write, gate and embedding at decode and prefill sizes."""
    width, inter, heads, kv_heads, dim = 1024, 3072, 16, 8, 128
    cos = torch.randn(4096, dim, device=DEVICE)
    table = torch.randn(151936, width, device=DEVICE, dtype=BF16)
    ones = torch.ones(width, device=DEVICE, dtype=BF16)
    for tokens in (1, 256, 8192):
        x, residual = (torch.randn(tokens, width, device=DEVICE, dtype=BF16) for _ in range(2))
        ids = torch.randint(0, 151936, (tokens,), device=DEVICE)
        gate_up = torch.randn(tokens, 2 * inter, device=DEVICE, dtype=BF16)
        qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device=DEVICE, dtype=BF16)
        pages = [
            torch.zeros(tokens // 64 + 2, kv_heads, 64, dim, device=DEVICE, dtype=BF16)
            for _ in range(2)
        ]
        positions = torch.arange(tokens, device=DEVICE) % 4096
        slots = torch.arange(tokens, device=DEVICE) + 64

        def rope() -> Tensor:
            return qkv_rope(
                qkv, *pages, positions, slots, num_heads=heads, cos=cos, sin=cos,  # noqa: B023
            )  # fmt: skip

        q = qkv.view(tokens, -1, dim)[:, :heads]
        rotated = reference.rotate(q, cos[positions], cos[positions])
        normed = reference.rms_norm(x + residual, ones, 1e-6)
        cases: list[tuple[str, Callable[[], Tensor], Tensor, int]] = [
            ("add_rms_norm", lambda: add_rms_norm(x, residual, ones, 1e-6)[0], normed, 4),  # noqa: B023
            ("gated_act", lambda: gated_act(gate_up), reference.gated_act(gate_up, "silu"), 9),  # noqa: B023
            ("embed", lambda: embed(ids, table), table[ids], 2),  # noqa: B023
            ("qkv_rope", rope, rotated, 8),
        ]
        for name, call, expected, rows_moved in cases:
            error = relative_error(call(), expected)
            time = graph_us(lambda: [call() for _ in range(8)], 8)  # noqa: B023
            sweep.add("fused", f"{name} T{tokens}", error, time, rows_moved * tokens * width * 2)


SECTIONS = {
    "decode": sweep_decode,
    "shared": sweep_shared,
    "linear": sweep_linear,
    "fused": sweep_fused,
}


def main() -> None:
    """Run the chosen sections and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--section", action="append", choices=SECTIONS, help="default: all")
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    sweep = Sweep()
    for name in args.section or SECTIONS:
        SECTIONS[name](sweep)
    if args.json is not None:
        table = {"copy_tb_per_s": sweep.copy_tb_per_s, "rows": [asdict(row) for row in sweep.rows]}
        args.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
