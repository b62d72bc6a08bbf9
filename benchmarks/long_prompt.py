"""A long prompt arrives while readers stream: how long do they wait for their next token?

Runs the same scene without and with a time target for steps, and draws the gaps between tokens.

    python -P benchmarks/long_prompt.py --model smollm2-135m --itl-target-ms 60 --svg out.svg
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.engine import EngineConfig, Request, SamplingParams, build_engine

if TYPE_CHECKING:
    from tokenbus.engine.engine import Engine

_LONG_ID = 1000
_WIDTH, _HEIGHT, _MARGIN = 900, 320, 50


@dataclass(frozen=True, slots=True)
class Scene:
    """Gaps between tokens of all readers as (time, gap) in seconds since the long prompt came."""

    target_ms: float | None
    alone: list[float]
    gaps: list[tuple[float, float]]
    ttft_s: float


def percentile_ms(gaps: list[float], q: float) -> float:
    """Return a percentile of gaps in milliseconds."""
    ordered = sorted(gaps)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1000


def play(engine: Engine, target_ms: float | None, num_readers: int, num_prompt: int) -> Scene:
    """Let readers stream, add the long prompt after 40 tokens, stop once it has its first."""
    source = random.Random(1)
    vocab = engine.limits.vocab_size
    readers = SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True)
    for idx in range(num_readers):
        prompt = tuple(source.randrange(vocab) for _ in range(64))
        engine.add(Request(idx, prompt, readers))
    last_at: dict[int, float] = {}
    alone: list[float] = []
    gaps: list[tuple[float, float]] = []
    counts = dict.fromkeys(range(num_readers), 0)
    asked_at: float | None = None
    first_at: float | None = None
    while True:
        deltas = engine.step().deltas
        now = time.perf_counter()
        for delta in deltas:
            if delta.request_id == _LONG_ID:
                first_at = now
                continue
            counts[delta.request_id] += 1
            before = last_at.get(delta.request_id)
            last_at[delta.request_id] = now
            if before is None or counts[delta.request_id] < 10:
                continue
            if asked_at is None:
                alone.append(now - before)
            else:
                gaps.append((now - asked_at, now - before))
        # Readers of the step that finished the prompt have waited for it too.
        if asked_at is not None and first_at is not None and gaps:
            for idx in [*range(num_readers), _LONG_ID]:
                engine.abort(idx)
            engine.step()
            return Scene(target_ms, alone, gaps, first_at - asked_at)
        if asked_at is None and min(counts.values()) >= 40:
            asked_at = time.perf_counter()
            prompt = tuple(source.randrange(vocab) for _ in range(num_prompt))
            engine.add(Request(_LONG_ID, prompt, SamplingParams(max_tokens=4, temperature=0.0)))


def draw(scenes: list[Scene], path: Path) -> None:
    """Write the gaps over time as an SVG, one colour per scene."""
    longest = max(t for scene in scenes for t, _ in scene.gaps)
    highest = max(gap for scene in scenes for _, gap in scene.gaps)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_MARGIN}" y="20">gap between tokens of a reader (ms, log) over seconds since'
        " the long prompt arrived</text>",
    ]
    for scene, colour in zip(scenes, ("#c0392b", "#2471a3"), strict=False):
        # Readers of one step have the same gap and would be drawn over each other.
        points = {
            (
                f"{_MARGIN + seconds / longest * (_WIDTH - 2 * _MARGIN):.1f}",
                f"{_y(gap, highest):.1f}",
            )
            for seconds, gap in scene.gaps
        }
        parts += [f'<circle cx="{x}" cy="{y}" r="1.5" fill="{colour}"/>' for x, y in sorted(points)]
        name = "no target" if scene.target_ms is None else f"target {scene.target_ms:.0f} ms"
        row = 40 if scene.target_ms is None else 56
        parts.append(f'<text x="{_WIDTH - 200}" y="{row}" fill="{colour}">{name}</text>')
    for mark in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        if mark <= highest:
            y = _y(mark, highest)
            parts.append(
                f'<line x1="{_MARGIN}" x2="{_WIDTH - _MARGIN}" y1="{y:.1f}" y2="{y:.1f}"'
                ' stroke="#ddd"/>'
                f'<text x="5" y="{y + 4:.1f}">{mark * 1000:.0f}</text>'
            )
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")


def _y(gap_s: float, highest_s: float) -> float:
    import math

    low, high = math.log(0.005), math.log(max(highest_s, 0.02))
    share = (math.log(max(gap_s, 0.005)) - low) / (high - low)
    return _HEIGHT - 30 - share * (_HEIGHT - 90)


def main() -> None:
    """Play both scenes and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="folder, hub id or alias")
    parser.add_argument("--itl-target-ms", type=float, default=60.0, help="step target in ms")
    parser.add_argument("--readers", type=int, default=8, help="streaming sequences")
    parser.add_argument("--prompt-tokens", type=int, default=6000, help="length of the long prompt")
    parser.add_argument("--svg", type=Path, help="write the plot here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    scenes = []
    for target_ms in (None, args.itl_target_ms):
        engine = build_engine(
            EngineConfig(model=args.model, itl_target_ms=target_ms, kv_cache_gib=1.0)
        )
        scenes.append(play(engine, target_ms, args.readers, args.prompt_tokens))
        engine.close()
    figures = []
    for scene in scenes:
        during = [gap for _, gap in scene.gaps]
        figures.append(
            {
                "target_ms": scene.target_ms,
                "alone_p50_ms": percentile_ms(scene.alone, 0.5),
                "during_p50_ms": percentile_ms(during, 0.5),
                "during_p99_ms": percentile_ms(during, 0.99),
                "during_max_ms": max(during) * 1000,
                "long_prompt_ttft_s": scene.ttft_s,
            }
        )
        print({key: value and round(value, 1) for key, value in figures[-1].items()})
    if args.svg:
        draw(scenes, args.svg)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
