"""Keep an engine under mixed load with random aborts, and watch for leaks, NaN and drift.

    python -P benchmarks/soak.py --model DIR [--random-weights] [--minutes 10] [--json FILE]

Prompts of 1 to 2,000 tokens, a third of them under one of eight shared prefixes; greedy, filtered,
penalised and scored sampling mixed; 5 % are aborted at a random moment. Every minute is one line.
Ends with exit code 1 if a page leaked, a log-probability was no number, a token lay outside the
vocabulary or a sequence had a wrong length.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from tokenbus.engine import EngineConfig, Request, SamplingParams, build_engine
from tokenbus.engine.types import FinishReason, TokenDelta

# Waiting beside the running, so that a freed row never stays empty.
BACKLOG = 32
ABORT_SHARE = 0.05


@dataclass(slots=True)
class Minute:
    """What one minute came to; times in milliseconds, memory in MiB."""

    tokens: int = 0
    finished: int = 0
    aborted: int = 0
    preemptions: int = 0
    step_ms_p50: float = 0.0
    step_ms_p99: float = 0.0
    rows_mean: float = 0.0
    us_per_token: float = 0.0
    gpu_mib: float = 0.0
    host_mib: float = 0.0


@dataclass(slots=True)
class Load:
    """Draws requests, and knows what has to come of each."""

    vocab_size: int
    max_prompt: int
    max_output: int
    source: random.Random = field(default_factory=lambda: random.Random(0))
    next_id: int = 0
    expected: dict[int, SamplingParams] = field(default_factory=dict)
    received: dict[int, int] = field(default_factory=dict)
    doomed: dict[int, int] = field(default_factory=dict)
    prefixes: list[tuple[int, ...]] = field(default_factory=list)

    def ids(self, count: int) -> tuple[int, ...]:
        """Draw token ids."""
        return tuple(self.source.randrange(self.vocab_size) for _ in range(count))

    def draw(self) -> Request:
        """Draw one request, and whether and after how many tokens it is aborted."""
        source = self.source
        if not self.prefixes:
            self.prefixes = [self.ids(self.max_prompt // 2) for _ in range(8)]
        own = source.randint(1, self.max_prompt // 2)
        shares = source.random() < 1 / 3
        prompt = (*source.choice(self.prefixes), *self.ids(own)) if shares else self.ids(own * 2)
        length = source.randint(1, self.max_output)
        kind = source.random()
        params = SamplingParams(
            max_tokens=length,
            ignore_eos=True,
            seed=self.next_id,
            temperature=0.0 if kind < 0.2 else 0.8,
            top_p=0.95 if 0.4 < kind < 0.5 else 1.0,
            top_k=50 if 0.5 < kind < 0.6 else 0,
            repetition_penalty=1.1 if 0.6 < kind < 0.65 else 1.0,
            logprobs=2 if kind > 0.95 else None,
        )
        request = Request(self.next_id, prompt, params)
        self.next_id += 1
        self.expected[request.request_id] = params
        self.received[request.request_id] = 0
        if source.random() < ABORT_SHARE:
            self.doomed[request.request_id] = source.randint(0, length)
        return request

    def take(self, delta: TokenDelta) -> FinishReason | None:
        """Check one delta; return how its request ended, if it did.

        Raises: RuntimeError for a wrong length, a token outside the vocabulary or a score that is
            no number.
        """
        request_id = delta.request_id
        self.received[request_id] += len(delta.token_ids)
        if any(not 0 <= token_id < self.vocab_size for token_id in delta.token_ids):
            raise RuntimeError(f"request {request_id}: token outside the vocabulary")
        for score in delta.logprobs:
            if not all(math.isfinite(item) for item in (score.logprob, *(t[1] for t in score.top))):
                raise RuntimeError(f"request {request_id}: log-probability {score}")
        reason = delta.finish_reason
        if reason is None:
            return None
        params, received = self.expected.pop(request_id), self.received.pop(request_id)
        was_doomed = self.doomed.pop(request_id, None) is not None
        if reason is FinishReason.ABORTED and not was_doomed:
            raise RuntimeError(f"request {request_id} was aborted by nobody")
        if reason is not FinishReason.ABORTED and received != params.max_tokens:
            raise RuntimeError(f"request {request_id} has {received} of {params.max_tokens} tokens")
        return reason


def soak(config: EngineConfig, minutes: float) -> list[Minute]:
    """Run the load; return one entry per minute.

    Raises: RuntimeError or IntegrityError if anything was lost, leaked or no number.
    """
    engine = build_engine(config)
    longest = engine.limits.max_model_len
    load = Load(engine.limits.vocab_size, min(2000, longest // 2), min(600, longest // 4))
    done: list[Minute] = []
    print("minute    tok/s  rows  step ms p50    p99  us/token  finished aborted preempted"
          "  GPU MiB  host MiB", flush=True)  # fmt: skip
    ends_at = time.monotonic() + minutes * 60
    while time.monotonic() < ends_at:
        minute, stats = Minute(), engine.stats()
        preempted_before = stats.preemptions_total
        steps_ms: list[float] = []
        rows = 0
        began_at = last_at = time.monotonic()
        while last_at < min(began_at + 60, ends_at):
            while stats.num_waiting < BACKLOG and len(load.expected) < config.max_num_seqs * 2:
                engine.add(load.draw())
                stats = engine.stats()
            for request_id in [r for r, at in load.doomed.items() if load.received[r] >= at]:
                engine.abort(request_id)
            step = engine.step()
            stats = step.stats
            for delta in step.deltas:
                minute.tokens += len(delta.token_ids)
                reason = load.take(delta)
                minute.finished += reason is FinishReason.LENGTH
                minute.aborted += reason is FinishReason.ABORTED
            now = time.monotonic()
            steps_ms.append((now - last_at) * 1000)
            last_at = now
            rows += stats.num_running
            if len(steps_ms) % 1000 == 0:
                engine.check_integrity()
        _fill(minute, steps_ms, rows, last_at - began_at)
        minute.preemptions = stats.preemptions_total - preempted_before
        done.append(minute)
        _print(len(done), minute, last_at - began_at)
    _drain(engine, load)
    engine.close()
    return done


def _fill(minute: Minute, steps_ms: list[float], rows: int, duration_s: float) -> None:
    ordered = sorted(steps_ms)
    minute.step_ms_p50 = ordered[len(ordered) // 2]
    minute.step_ms_p99 = ordered[len(ordered) * 99 // 100]
    minute.rows_mean = rows / len(steps_ms)
    minute.us_per_token = duration_s * 1e6 / max(minute.tokens, 1)
    # Linux gives KiB.
    minute.host_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if torch.cuda.is_available():
        minute.gpu_mib = torch.cuda.memory_allocated() / 2**20


def _print(number: int, minute: Minute, duration_s: float) -> None:
    print(
        f"{number:>6} {minute.tokens / duration_s:>8.0f} {minute.rows_mean:>5.0f}"
        f" {minute.step_ms_p50:>12.2f} {minute.step_ms_p99:>6.1f} {minute.us_per_token:>9.1f}"
        f" {minute.finished:>9} {minute.aborted:>7} {minute.preemptions:>9}"
        f" {minute.gpu_mib:>8.0f} {minute.host_mib:>9.0f}",
        flush=True,
    )


def _drain(engine: object, load: Load) -> None:
    """Abort what still runs; every page has to be free afterwards."""
    from tokenbus.engine.engine import Engine

    assert isinstance(engine, Engine)
    for request_id in list(load.expected):
        load.doomed[request_id] = 0
        engine.abort(request_id)
    while engine.has_work:
        for delta in engine.step().deltas:
            load.take(delta)
    engine.check_integrity()
    stats = engine.stats()
    left = stats.num_pages - 1 - stats.free_pages - stats.evictable_pages
    if left or load.expected:
        raise RuntimeError(f"{left} pages and {len(load.expected)} requests are left")
    print(
        f"all {stats.num_pages - 1} pages free, {load.next_id} requests, nothing left", flush=True
    )


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--random-weights", action="store_true")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--max-model-len", type=int, default=4096)
    parser.add_argument("--memory-fraction", type=float, default=0.9)
    parser.add_argument("--num-pages", type=int, help="fewer pages force preemption")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    config = EngineConfig(
        model=args.model,
        random_weights=args.random_weights,
        max_num_seqs=args.max_num_seqs,
        max_model_len=args.max_model_len,
        memory_fraction=args.memory_fraction,
        num_pages=args.num_pages,
    )
    minutes = soak(config, args.minutes)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(minute) for minute in minutes], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
