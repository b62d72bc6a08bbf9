"""Sweep every kernel against its torch twin: error, time, bandwidth, share of the ceiling.

    python -P benchmarks/kernels.py [--section NAME ...] [--json FILE]

Ceilings are measured in the same run. Times are medians of CUDA-graph replays. Linears and
elementwise kernels rotate through enough weights to miss the L2 cache.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch

# Run with -P, python leaves the script's own folder out.
sys.path.insert(0, str(Path(__file__).parent))

from decode_batch import DecodeBatch, decode_bytes
from harness import BF16, DEVICE, Sweep, graph_us, relative_error

from tokenbus.kernels import reference
from tokenbus.kernels.activation import gated_act
from tokenbus.kernels.embedding import embed
from tokenbus.kernels.linear.small_linear import Fusion, small_linear
from tokenbus.kernels.norm import add_rms_norm
from tokenbus.kernels.qkv_rope import qkv_rope

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

# More than the 60 MB of an H200's L2, several times over.
ROTATED_BYTES = 300_000_000


def sweep_decode(sweep: Sweep) -> None:
    """Head dims, group sizes, context lengths, mixed batches; the bars with run code as well."""
    rng = random.Random(0)
    mixed = [rng.randint(100, 2048) for _ in range(256)]
    bars = [
        ("mixed 256", mixed, (16, 8, 128)),
        ("mixed 256", mixed, (32, 8, 128)),
        ("1 x 32768", [32768], (16, 8, 128)),
        ("1 x 32768", [32768], (32, 8, 128)),
    ]
    shapes = [(8 * group, 8, dim) for dim in (64, 128) for group in (1, 2, 4, 8)]
    others = [
        *(("mixed 256", mixed, heads) for heads in shapes if heads[2] == 64 or heads[0] in (8, 64)),
        *((f"1 x {tokens}", [tokens], (16, 8, 128)) for tokens in (1, 100, 350, 1024, 4096)),
        ("8 x 350", [350] * 8, (16, 8, 128)),
        ("32 x 1000", [1000] * 32, (32, 8, 128)),
        ("64 x 4096", [4096] * 64, (32, 8, 128)),
    ]
    for name, lens, heads in [*bars, *others]:
        batch = DecodeBatch.make(lens, heads, [])
        for grouped in (False, True) if (name, lens, heads) in bars else (False,):
            error, time = batch.measure([], grouped=grouped)
            label = f"{name} Hq{heads[0]} Hkv{heads[1]} D{heads[2]}"
            note = "run code compiled in" if grouped else ""
            sweep.add("decode", label, error, time, decode_bytes(lens, heads), note)


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
                residual=None if normed else torch.randn(rows, width_out, device=DEVICE),
            )
            expected = reference.fused_linear(
                x, weights[0], norm_weight=fusion.norm_weight, act=fusion.act,
                residual=fusion.residual,
            )  # fmt: skip
            out = small_linear(x, weights[0], fusion)
            error = relative_error(out, expected)
            time = graph_us(lambda: [small_linear(x, w, fusion, out=out) for w in weights], copies)  # noqa: B023
            blas = graph_us(lambda: [torch.nn.functional.linear(x, w) for w in weights], copies)  # noqa: B023
            moved = height * width_in * 2
            sweep.add("linear", f"{name} M{rows}", error, time, moved, f"cuBLAS {blas:.2f} us")


def sweep_fused(sweep: Sweep) -> None:
    """Norm, rotary with page write, gate and embedding at decode and prefill sizes."""
    width, inter, heads, kv_heads, dim = 1024, 3072, 16, 8, 128
    cos = torch.randn(4096, dim // 2, device=DEVICE).repeat(1, 2)
    table = torch.randn(151936, width, device=DEVICE, dtype=BF16)
    ones = torch.ones(width, device=DEVICE, dtype=BF16)
    for tokens in (1, 256, 8192):
        x = torch.randn(tokens, width, device=DEVICE, dtype=BF16)
        residual = torch.randn(tokens, width, device=DEVICE)
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
                qkv, pages[0], pages[1], positions, slots, num_heads=heads, cos=cos, sin=cos,  # noqa: B023
            )  # fmt: skip

        q = qkv.view(tokens, -1, dim)[:, :heads]
        rotated = reference.rotate(q, cos[positions], cos[positions])
        normed = reference.rms_norm(x + residual, ones, 1e-6)
        cases: list[tuple[str, Callable[[], Tensor], Tensor, int]] = [
            ("add_rms_norm", lambda: add_rms_norm(x, residual, ones, 1e-6)[0], normed, 6),  # noqa: B023
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
        sweep.write(args.json)


if __name__ == "__main__":
    main()
