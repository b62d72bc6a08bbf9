"""How soon a prompt has its first token, alone and beside others that decode; the engine alone.

Time runs from the first step after the prompt was added to the step that brings its token. The
first try of a size is shown by itself: it may load or capture what the next ones reuse.

    python -P benchmarks/first_token.py --model DIR --random-weights --lens 8 50 200 --beside 0 100
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import TYPE_CHECKING

from tokenbus.engine import EngineConfig, Request, SamplingParams, build_engine

if TYPE_CHECKING:
    from tokenbus.engine.engine import Engine

_TRIES = 9
# Neighbours outlast all tries and promise themselves no more pages than that.
_NEIGHBOUR_TOKENS, _NEIGHBOUR_OUTPUT = 40, 900
_STEPS_BEFORE = 6


class Clock:
    """Adds prompts of random ids to an engine and times their first tokens."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._source = random.Random(1)
        self._next_id = 0

    def first_tokens_ms(self, length: int, beside: int) -> list[float]:
        """Time one prompt after the other while `beside` sequences decode."""
        engine = self._engine
        room = engine.limits.max_model_len - _NEIGHBOUR_TOKENS
        neighbours = [
            self._add(_NEIGHBOUR_TOKENS, min(room, _NEIGHBOUR_OUTPUT)) for _ in range(beside)
        ]
        for _ in range(_STEPS_BEFORE if beside else 0):
            engine.step()
        times = []
        for _ in range(_TRIES):
            mine = self._add(length, 1)
            started_at = time.perf_counter()
            while not self._step_brings(mine):
                pass
            times.append((time.perf_counter() - started_at) * 1e3)
        for neighbour in neighbours:
            engine.abort(neighbour)
        while engine.has_work:
            engine.step()
        return times

    def _add(self, length: int, max_tokens: int) -> int:
        self._next_id += 1
        vocab = self._engine.limits.vocab_size
        prompt = tuple(self._source.randrange(vocab) for _ in range(length))
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        self._engine.add(Request(self._next_id, prompt, params))
        return self._next_id

    def _step_brings(self, mine: int) -> bool:
        deltas = self._engine.step().deltas
        return any(delta.request_id == mine and delta.token_ids for delta in deltas)


def main() -> None:
    """Print a line per length and number of neighbours, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-seqs", type=int, default=512)
    parser.add_argument("--lens", type=int, nargs="+", default=[8, 50, 200, 600, 1000, 4000])
    parser.add_argument("--beside", type=int, nargs="+", default=[0])
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model,
        random_weights=args.random_weights,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
    )
    clock = Clock(build_engine(config))
    for beside in args.beside:
        for length in args.lens:
            first, *later = clock.first_tokens_ms(length, beside)
            row = {
                "prompt_tokens": length,
                "beside": beside,
                "first_ms": round(first, 2),
                "p50_ms": round(statistics.median(later), 2),
            }
            line = "{prompt_tokens} tokens beside {beside}: {p50_ms} ms, first try {first_ms}"
            print(json.dumps(row) if args.json else line.format(**row))


if __name__ == "__main__":
    main()
