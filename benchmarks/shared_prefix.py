"""Shared runs read once for all, against the same kernel reading them row by row.

    python -P benchmarks/shared_prefix.py [--json FILE] [--plot FILE.svg]

Prefix length x batch x number of prefixes, every row with 164 tokens of its own, on the same
shared pages for both. Every case is timed with the runs read together, whatever the gate of the
grouping says, so that the break-even shows; where the gate leaves the rows apart, the engine runs
the flat kernel, and the case counts as 1.00 x. Ends with code 1 if one counts less than 0.97 x.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

# Run with -P, python leaves the script's own folder out.
sys.path.insert(0, str(Path(__file__).parent))

from decode_batch import PAGE_SIZE, DecodeBatch, decode_bytes
from harness import Sweep

from tokenbus.engine.attention.triton_attention import TritonAttention

OWN_TOKENS = 164
HEADS = {"Hq16 Hkv8 D128": (16, 8, 128), "Hq32 Hkv8 D128": (32, 8, 128)}
GROUPS = (1, 4, 16)
PREFIXES = (256, 512, 1024, 2048, 4096, 8192, 16384)
BATCHES = (8, 16, 32, 64, 128, 256, 512)
LEAST = 0.97


@dataclass(frozen=True, slots=True)
class Point:
    """How many times faster a case is with its runs read together, and if the engine does so."""

    heads: str
    groups: int
    prefix: int
    rows: int
    speed_up: float
    is_open: bool

    @property
    def counted(self) -> float:
        """What the engine gains."""
        return self.speed_up if self.is_open else 1.0


def measure(sweep: Sweep) -> list[Point]:
    """Time all cases."""
    points: list[Point] = []
    attention = TritonAttention(max(BATCHES))
    for label, heads in HEADS.items():
        for num_groups in GROUPS:
            for tokens in PREFIXES:
                for rows in BATCHES:
                    if rows < 2 * num_groups:
                        continue
                    size = rows // num_groups
                    runs = [
                        (range(group * size, (group + 1) * size), tokens // PAGE_SIZE)
                        for group in range(num_groups)
                    ]
                    batch = DecodeBatch.make([tokens + OWN_TOKENS] * rows, heads, runs)
                    _, flat = batch.measure(runs, grouped=False)
                    error, time = batch.measure(runs, grouped=True)
                    saved = (rows - num_groups) * tokens * heads[1]
                    pays = attention.pays(size, tokens // PAGE_SIZE)
                    is_open = pays and saved >= attention.min_saved_tokens
                    moved = decode_bytes([OWN_TOKENS] * rows + [tokens] * num_groups, heads)
                    name = f"{rows} x {tokens} in {num_groups} {label}"
                    gate = "" if is_open else ", gate closed"
                    note = f"flat {flat:.1f} us, {flat / time:.2f} x{gate}"
                    sweep.add("shared", name, error, time, moved, note)
                    points.append(Point(label, num_groups, tokens, rows, flat / time, is_open))
    return points


def draw(points: list[Point], title: str) -> str:
    """Draw the speed-ups as a table of coloured cells, one panel per shape and group count."""
    cell, left, top, gap = 46, 60, 60, 30
    wide = left + len(BATCHES) * cell + gap
    high = top + len(PREFIXES) * 22 + gap
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide * len(GROUPS)}" '
        f'height="{high * len(HEADS) + 20}" font-family="sans-serif" font-size="11">',
        f'<text x="10" y="16" font-size="13">{title}</text>',
    ]
    for point in points:
        x = GROUPS.index(point.groups) * wide + left + BATCHES.index(point.rows) * cell
        y = list(HEADS).index(point.heads) * high + top + PREFIXES.index(point.prefix) * 22
        # White at 1, green up to 6, red below; grey where the gate keeps the rows apart.
        depth = min(max((point.speed_up - 1) / 5, -1.0), 1.0)
        fade = int(255 * (1 - abs(depth) * 0.75))
        colour = f"rgb({fade},255,{fade})" if depth >= 0 else f"rgb(255,{fade},{fade})"
        colour = colour if point.is_open else "rgb(225,225,225)"
        parts.append(f'<rect x="{x}" y="{y}" width="{cell}" height="22" fill="{colour}"/>')
        parts.append(f'<text x="{x + 8}" y="{y + 15}">{point.speed_up:.2f}</text>')
    for row, label in enumerate(HEADS):
        for column, num_groups in enumerate(GROUPS):
            x, y = column * wide, row * high + top
            parts.append(
                f'<text x="{x + 10}" y="{y - 22}">{label}, {num_groups} prefixes; '
                "rows across, prefix tokens down</text>"
            )
            for index, rows in enumerate(BATCHES):
                parts.append(f'<text x="{x + left + index * cell + 8}" y="{y - 6}">{rows}</text>')
            for index, tokens in enumerate(PREFIXES):
                parts.append(f'<text x="{x + 14}" y="{y + index * 22 + 15}">{tokens}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Run the sweep, say how far the worst case is from 1, write table and plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write all rows to this file")
    parser.add_argument("--plot", type=Path, help="write the speed-ups as SVG to this file")
    args = parser.parse_args()
    torch.manual_seed(0)
    sweep = Sweep()
    points = measure(sweep)
    for point in sorted(points, key=lambda point: point.counted)[:12]:
        print("least:", point)
    if args.json is not None:
        sweep.write(args.json)
    if args.plot is not None:
        name = torch.cuda.get_device_name()
        title = f"Grouped against flat, times faster, on one {name}; grey: the engine stays flat"
        args.plot.write_text(draw(points, title))
    return min(point.counted for point in points) < LEAST


if __name__ == "__main__":
    raise SystemExit(main())
