"""How long the slowest step takes when a rule, or a size of prompt, is asked for the first time.

Sequences decode all the while, one kind of request after the other joins them, and every step is
timed. To see a start with nothing compiled, give it an empty folder for what Triton compiles:

    TRITON_CACHE_DIR=$(mktemp -d) python -P benchmarks/first_use.py --model DIR --random-weights
"""

from __future__ import annotations

import argparse
import json
import random
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.engine import EngineConfig, Request, SamplingParams, build_engine

if TYPE_CHECKING:
    from tokenbus.engine.engine import Engine

_PLAIN = SamplingParams(temperature=0.6, ignore_eos=True)
_RULES = {
    "nothing": _PLAIN,
    "greedy": replace(_PLAIN, temperature=0.0),
    "top-k": replace(_PLAIN, top_k=50),
    "top-p": replace(_PLAIN, top_p=0.9),
    "min-p": replace(_PLAIN, min_p=0.05),
    "top-k and top-p": replace(_PLAIN, top_k=50, top_p=0.9),
    "repetition penalty": replace(_PLAIN, repetition_penalty=1.1),
    "presence and frequency": replace(_PLAIN, presence_penalty=0.2, frequency_penalty=0.1),
    "bias": replace(_PLAIN, logit_bias={7: 2.0, 8: -100.0}),
    "bad words": replace(_PLAIN, bad_words=((5, 6), (7,))),
    "min_tokens": replace(_PLAIN, min_tokens=4, stop_token_ids=(9,), ignore_eos=False),
    "rules and filters": replace(_PLAIN, repetition_penalty=1.1, top_p=0.9),
    "log-probabilities": replace(_PLAIN, logprobs=0),
    "20 alternatives": replace(_PLAIN, logprobs=20),
    "all at once": replace(
        _PLAIN, logprobs=5, top_k=9, min_p=0.01, frequency_penalty=0.3, logit_bias={3: 1.0}
    ),
    "prompt's log-probabilities": replace(_PLAIN, prompt_logprobs=2),
}
_NEW_TOKENS = 12
_BESIDE_TOKENS, _BESIDE_OUTPUT = 40, 3000
# Steps before the first rule: those that only take the neighbours in are not of interest.
_STEPS_BEFORE = 40


class FirstUse:
    """An engine with sequences that decode, to which others are added."""

    def __init__(self, engine: Engine, beside: int) -> None:
        self._engine = engine
        self._source = random.Random(1)
        self._next_id = 0
        for _ in range(beside):
            self._add(_BESIDE_TOKENS, replace(_PLAIN, max_tokens=_BESIDE_OUTPUT))
        for _ in range(_STEPS_BEFORE):
            engine.step()

    def steps_ms(self, length: int, params: SamplingParams) -> list[float]:
        """Add one request and return what each step took until it had ended."""
        mine = self._add(length, replace(params, max_tokens=_NEW_TOKENS))
        times = []
        is_running = True
        while is_running:
            started_at = time.perf_counter()
            deltas = self._engine.step().deltas
            times.append((time.perf_counter() - started_at) * 1e3)
            of_mine = [delta for delta in deltas if delta.request_id == mine]
            assert all(delta.error is None for delta in of_mine), of_mine
            is_running = not any(delta.finish_reason for delta in of_mine)
        return times

    def _add(self, length: int, params: SamplingParams) -> int:
        self._next_id += 1
        vocab = self._engine.limits.vocab_size
        prompt = tuple(self._source.randrange(vocab) for _ in range(length))
        self._engine.add(Request(self._next_id, prompt, replace(params, seed=self._next_id)))
        return self._next_id


def main() -> None:
    """Print the slowest step of the first and of the second request of each kind."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--max-num-seqs", type=int, default=512)
    parser.add_argument("--beside", type=int, default=30)
    parser.add_argument("--lens", type=int, nargs="*", default=[24, 90, 300, 700, 1500, 3000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model,
        random_weights=args.random_weights,
        max_model_len=args.max_model_len,
        max_num_seqs=args.max_num_seqs,
    )
    started_at = time.perf_counter()
    engine = build_engine(config)
    print(f"ready after {time.perf_counter() - started_at:.1f} s", flush=True)
    run = FirstUse(engine, args.beside)
    kinds = [(name, 20, params) for name, params in _RULES.items()]
    kinds += [(f"a prompt of {length}", length, _PLAIN) for length in args.lens]
    rows = []
    for name, length, params in kinds:
        first, second = run.steps_ms(length, params), run.steps_ms(length, params)
        rows.append({"kind": name, "first_ms": max(first), "second_ms": max(second)})
        print(f"{name:28} slowest step {max(first):7.1f} ms, then {max(second):6.1f}", flush=True)
    if args.json is not None:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
