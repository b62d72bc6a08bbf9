"""Long prompts arrive while readers stream: how long do they wait for their next token?

Runs the same scene without and with a time target for steps, and draws the gaps between tokens. The
same prompts run without readers before, to say what these cost them.

    python -P benchmarks/long_prompt.py --model smollm2-135m --itl-target-ms 60 --svg out.svg
    python -P benchmarks/long_prompt.py --model DIR --random-weights --readers 64 --prompts 16 \
        --prompt-tokens 8000 --itl-target-ms 50 --no-scene-without-target --kv-cache-gib 40
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
# Tokens of a reader before the prompts come, and before gaps count: the first ones warm up.
_TOKENS_BEFORE, _FIRST_TIMED = 40, 10
_WIDTH, _HEIGHT, _MARGIN = 900, 320, 50


@dataclass(frozen=True, slots=True)
class Scene:
    """Gaps between tokens of all readers as (time, gap) in seconds since the long prompts came.

    prompts_s: until each of these had its first token; prompts_alone_s: the same without readers.
    """

    target_ms: float | None
    alone: list[float]
    gaps: list[tuple[float, float]]
    prompts_s: float
    prompts_alone_s: float


def percentile_ms(gaps: list[float], q: float) -> float:
    """Return a percentile of gaps in milliseconds."""
    ordered = sorted(gaps)
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1000


def prompts_s(
    engine: Engine, args: argparse.Namespace, last_at: dict[int, float]
) -> tuple[float, list[tuple[float, float]]]:
    """Add the long prompts; return the seconds until all had a first token, and readers' gaps."""
    source, vocab = random.Random(2), engine.limits.vocab_size
    waiting = set(range(_LONG_ID, _LONG_ID + args.prompts))
    asked_at = time.perf_counter()
    for idx in waiting:
        prompt = tuple(source.randrange(vocab) for _ in range(args.prompt_tokens))
        engine.add(Request(idx, prompt, SamplingParams(max_tokens=4, temperature=0.0)))
    gaps = []
    # Readers of the step that finished the last prompt have waited for it too.
    while waiting:
        deltas = engine.step().deltas
        now = time.perf_counter()
        for delta in deltas:
            waiting.discard(delta.request_id)
            if delta.request_id in last_at:
                gaps.append((now - asked_at, now - last_at[delta.request_id]))
                last_at[delta.request_id] = now
    return now - asked_at, gaps


def play(engine: Engine, target_ms: float | None, args: argparse.Namespace) -> Scene:
    """Run the prompts alone; then let readers stream, and add the prompts after 40 tokens."""
    prompts_alone_s, _ = prompts_s(engine, args, {})
    stop(engine, args)
    engine.reset_prefix_cache()
    source, vocab = random.Random(1), engine.limits.vocab_size
    readers = SamplingParams(max_tokens=4000, temperature=0.0, ignore_eos=True)
    for idx in range(args.readers):
        prompt = tuple(source.randrange(vocab) for _ in range(64))
        engine.add(Request(idx, prompt, readers))
    last_at: dict[int, float] = {}
    alone: list[float] = []
    counts = dict.fromkeys(range(args.readers), 0)
    while min(counts.values()) < _TOKENS_BEFORE:
        deltas = engine.step().deltas
        now = time.perf_counter()
        for delta in deltas:
            counts[delta.request_id] += 1
            if counts[delta.request_id] >= _FIRST_TIMED:
                alone.append(now - last_at[delta.request_id])
            last_at[delta.request_id] = now
    taken_s, gaps = prompts_s(engine, args, last_at)
    stop(engine, args)
    return Scene(target_ms, alone, gaps, taken_s, prompts_alone_s)


def stop(engine: Engine, args: argparse.Namespace) -> None:
    """Abort everybody."""
    for idx in (*range(args.readers), *range(_LONG_ID, _LONG_ID + args.prompts)):
        engine.abort(idx)
    engine.step()


def draw(scenes: list[Scene], path: Path) -> None:
    """Write the gaps over time as an SVG, one colour per scene."""
    longest = max(t for scene in scenes for t, _ in scene.gaps)
    highest = max(gap for scene in scenes for _, gap in scene.gaps)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}"'
        ' font-family="sans-serif" font-size="12">',
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>',
        f'<text x="{_MARGIN}" y="20">gap between tokens of a reader (ms, log) over seconds since'
        " the long prompts arrived</text>",
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
    parser.add_argument("--prompts", type=int, default=1, help="long prompts that come at once")
    parser.add_argument("--prompt-tokens", type=int, default=6000, help="length of a long prompt")
    parser.add_argument("--random-weights", action="store_true", help="draw the weights")
    parser.add_argument("--kv-cache-gib", type=float, default=1.0, help="room for pages")
    parser.add_argument(
        "--no-scene-without-target", action="store_true", help="run the scene with a target alone"
    )
    parser.add_argument("--svg", type=Path, help="write the plot here")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    scenes = []
    targets = (args.itl_target_ms,) if args.no_scene_without_target else (None, args.itl_target_ms)
    for target_ms in targets:
        config = EngineConfig(
            model=args.model,
            random_weights=args.random_weights,
            itl_target_ms=target_ms,
            kv_cache_gib=args.kv_cache_gib,
        )
        engine = build_engine(config)
        scenes.append(play(engine, target_ms, args))
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
                "long_prompts_s": scene.prompts_s,
                "long_prompts_alone_s": scene.prompts_alone_s,
            }
        )
        print({key: value and round(value, 3) for key, value in figures[-1].items()})
    if args.svg:
        draw(scenes, args.svg)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
