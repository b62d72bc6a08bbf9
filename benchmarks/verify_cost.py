"""What a step costs that checks drafted tokens, beside a plain one; the engine alone.

Drafts are random, so nearly every one is wrong from its first token on: a turn brings one token of
each sequence, as a plain one does, and the texts grow alike. Turns of all sizes are taken in turn.
Rows are those of one sequence: its last token and the tokens of its draft. On a busy CPU the
processor's time of one thread says more than the clock: `--threads 1 --processor-time`.

    python -P benchmarks/verify_cost.py --model smollm2-135m --rows 4 8 16 --batch 1 8
    python -P benchmarks/verify_cost.py --model DIR --random-weights --context 256 4000 --profile

`--profile` adds, on a GPU, what the device did in a turn: kernels by name, and all of them. What a
turn takes beyond that is the host's, while the device waits.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import time
from itertools import product
from typing import TYPE_CHECKING, Any

from tokenbus.engine import EngineConfig, Request, SamplingParams, build_engine
from tokenbus.engine.execution.drafting import Drafting
from tokenbus.engine.sampling.plan import MAX_DRAFTED_ROWS
from tokenbus.engine.speculation.planner import DraftPlanner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.speculation.drafter import DraftView

# A change of size leaves a token in flight, and a first graph or allocation behind.
_UNTIMED_TURNS = 3
_PROFILED_TURNS = 5
_NUM_KERNELS = 14


class RandomDrafts(DraftPlanner):
    """Drafts `size` random tokens for everybody."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__(2**16)
        self.size = 0
        self._vocab_size = vocab_size
        self._source = random.Random(1)

    def pays(self, num_seqs: int) -> bool:
        """Tell whether there are drafts."""
        return num_seqs > 0 and self.size > 0

    def plan(self, seqs: Sequence[DraftView]) -> dict[int, list[int]]:
        """Return tokens that are hardly ever right."""
        draw = self._source.randrange
        return {seq.key: [draw(self._vocab_size) for _ in range(self.size)] for seq in seqs}


class Turns:
    """Sequences of one length in an engine that drafts for them."""

    def __init__(self, engine: Engine, drafts: RandomDrafts, clock: Callable[[], float]) -> None:
        self._engine, self._drafts, self._clock = engine, drafts, clock

    def begin(self, num_seqs: int, context: int, max_tokens: int) -> None:
        """Add sequences with prompts of random ids, and compute these."""
        source, vocab_size = random.Random(2), self._engine.limits.vocab_size
        params = SamplingParams(max_tokens=max_tokens, temperature=0.7, ignore_eos=True)
        for request_id in range(num_seqs):
            prompt = tuple(source.randrange(vocab_size) for _ in range(context))
            self._engine.add(Request(request_id, prompt, params))
        self._drafts.size = 0
        self._turn(num_seqs)

    def end(self) -> None:
        """Abort them."""
        for request_id in range(self._engine.limits.max_num_seqs):
            self._engine.abort(request_id)
        while self._engine.has_work:
            self._engine.step()

    def timed(self, num_seqs: int, num_rows: int, count: int) -> list[float]:
        """Return the milliseconds of `count` turns of so many rows a sequence."""
        self._drafts.size = num_rows - 1
        for _ in range(_UNTIMED_TURNS):
            self._turn(num_seqs)
        times = []
        for _ in range(count):
            started_at = self._clock()
            self._turn(num_seqs)
            times.append((self._clock() - started_at) * 1e3)
        return times

    def profiled(self, num_seqs: int, num_rows: int) -> dict[str, Any]:
        """Return what the device did in a turn: milliseconds in all, and microseconds by kernel."""
        from torch.profiler import ProfilerActivity, profile

        self.timed(num_seqs, num_rows, 0)
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            for _ in range(_PROFILED_TURNS):
                self._turn(num_seqs)
        spent = {
            event.key[:60]: event.device_time_total / _PROFILED_TURNS
            for event in profiler.key_averages()
        }
        most = sorted(spent.items(), key=lambda item: -item[1])[:_NUM_KERNELS]
        return {
            "device_ms": round(sum(spent.values()) / 1e3, 3),
            "kernels_us": {name: round(us, 1) for name, us in most},
        }

    def _turn(self, num_seqs: int) -> None:
        """Step until every sequence has brought something."""
        missing = num_seqs
        while missing > 0:
            missing -= sum(bool(delta.token_ids) for delta in self._engine.step().deltas)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--rows", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--context", type=int, nargs="+", default=[256])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--processor-time", action="store_true")
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Print a line per batch and number of rows, or JSON."""
    args = _arguments()
    sizes = [1, *args.rows]
    max_tokens = 2 * args.rounds * len(sizes) * (args.turns + _UNTIMED_TURNS)
    max_tokens += len(sizes) * (_PROFILED_TURNS + _UNTIMED_TURNS)
    engine = build_engine(
        EngineConfig(
            model=args.model,
            random_weights=args.random_weights,
            dtype=args.dtype,
            device=args.device,
            num_threads=args.threads,
            speculation="auto",
            max_num_seqs=max(args.batch),
            max_model_len=max(args.context) + max_tokens,
        )
    )
    drafts = RandomDrafts(engine.limits.vocab_size)
    engine._drafting = Drafting(drafts, engine._constrained)
    clock = time.process_time if args.processor_time else time.perf_counter
    turns = Turns(engine, drafts, clock)
    for context, num_seqs in product(args.context, args.batch):
        fitting = [size for size in sizes if size == 1 or size * num_seqs <= MAX_DRAFTED_ROWS]
        turns.begin(num_seqs, context, max_tokens)
        times: dict[int, list[float]] = {size: [] for size in fitting}
        for _ in range(args.rounds):
            for size in fitting:
                times[size] += turns.timed(num_seqs, size, args.turns)
        rows = list(_rows(times, context, num_seqs))
        if args.profile:
            for row in rows:
                row.update(turns.profiled(num_seqs, row["rows"]))
        turns.end()
        for row in rows:
            _tell(row, as_json=args.json)
    engine.close()


def _rows(times: dict[int, list[float]], context: int, num_seqs: int) -> Iterator[dict[str, Any]]:
    plain = statistics.median(times[1])
    for size, found in times.items():
        p50, least = statistics.median(found), min(found)
        yield {
            "context": context, "batch": num_seqs, "rows": size, "p50_ms": round(p50, 3),
            "least_ms": round(least, 3), "of_plain": round(p50 / plain, 3),
            "least_of_plain": round(least / min(times[1]), 3),
            "load": round(os.getloadavg()[0], 1),
        }  # fmt: skip


def _tell(row: dict[str, Any], *, as_json: bool) -> None:
    line = (
        "context {context}, batch {batch}, {rows} rows each: {p50_ms} ms, {of_plain} of a plain"
        " turn; quickest {least_ms} ms, {least_of_plain}; load {load}"
    )
    print(json.dumps(row) if as_json else line.format(**row), flush=True)
    if not as_json and "device_ms" in row:
        print(f"  device {row['device_ms']} ms: {row['kernels_us']}", flush=True)


if __name__ == "__main__":
    main()
