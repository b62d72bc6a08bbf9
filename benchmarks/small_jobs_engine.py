"""What a small job costs the host of an engine, stage by stage, in CPU time; no GPU, no queue.

First the engine around a model that computes nothing: requests come off the wire, are added, run
and are packed as they are in the engine process. Everything but forward pass and device is real,
one step ahead as on a GPU. Then the engine process with the null engine, fed over its socket.

    python -P benchmarks/small_jobs_engine.py --prompt-tokens 200 --output-tokens 8
    python -P benchmarks/small_jobs_engine.py --prompt-tokens 50 --output-tokens 1 --choices 20

With `--at-once 0` all jobs are there before the first step, as offline; with another number so many
come between two steps.
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import json
import pstats
import random
import sys
import time
from array import array
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil
import torch

from tokenbus.engine.config import EngineConfig
from tokenbus.engine.engine import Engine
from tokenbus.engine.execution.constrained import ConstrainedRows
from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.execution.runner import Runner
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.sampling.sampler import SampledTokens, SamplingState
from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.text.generated_tokenizer import build_generated_tokenizer
from tokenbus.engine.types import EngineLimits, GrammarKind, GrammarSpec, Request, SamplingParams
from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.messages.engine import (
    COMMANDS,
    REPORTS,
    AddRequest,
    StartEngine,
    StepRecord,
    pack_step,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext

CPU = torch.device("cpu")
PAGE_SIZE = 64
# Jobs that warm everything up.
NUM_WARM = 200
START_S = 60.0


class HollowModel:
    """A model that computes nothing: hidden states of one number, logits of zeros."""

    attention_specs = (AttentionSpec(0, 1, 1, 1, 1.0),)

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self._logits = torch.zeros(1, vocab_size)

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:  # noqa: ARG002
        """Return hidden states [T, 1]."""
        return torch.zeros(len(token_ids), 1)

    def logits(self, hidden: Tensor, *, exact: bool = True) -> Tensor:  # noqa: ARG002
        """Return logits [M, V], a view of one row."""
        return self._logits.expand(len(hidden), -1)


def _draw_nothing(_: Tensor, rows: Tensor, *__: object) -> SampledTokens:
    """Return the same token for each row, where the device would draw."""
    return SampledTokens(torch.full_like(rows, 7), None)


class Stages:
    """CPU time by stage, as far as the stages are methods that can be wrapped."""

    def __init__(self) -> None:
        self.spent_s: Counter[str] = Counter()

    def counted(self, act: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """Return a function whose time counts to a stage."""

        def timed(*args: Any, **options: Any) -> Any:
            begins = time.thread_time()
            try:
                return act(*args, **options)
            finally:
                self.spent_s[stage] += time.thread_time() - begins

        return timed


def hollow_engine(args: argparse.Namespace) -> Engine:
    """Return an engine around a model that computes nothing."""
    model: Any = HollowModel(args.vocab_size)
    max_len = args.prompt_tokens + args.output_tokens + PAGE_SIZE
    num_pages = 1 + args.rows * 2 * -(-max_len // PAGE_SIZE)
    kv = KVCache(model.attention_specs, num_pages, PAGE_SIZE, torch.float32, CPU)
    rows = RowState(args.rows, -(-max_len // PAGE_SIZE), CPU)
    sampling: Any = SamplingState(args.rows, args.vocab_size, CPU, (2,))
    sampling.sample_with_plan = _draw_nothing
    runner = Runner(model, kv, sampling, rows)
    scheduler = Scheduler(
        PagePool(num_pages, PAGE_SIZE),
        ChunkSizer(8192, None),
        max_num_seqs=args.rows,
        on_release=runner.release,
    )
    limits = EngineLimits("hollow", num_pages, PAGE_SIZE, max_len, args.rows, (2,), args.vocab_size)
    tokenizer = build_generated_tokenizer(args.vocab_size) if args.choices else None
    config = EngineConfig("hollow")
    constrained = ConstrainedRows(tokenizer, limits, runner.containment, config)
    return Engine(runner, scheduler, constrained, limits, one_step_ahead=True)


def frames_of(args: argparse.Namespace, num_jobs: int, first: int) -> list[bytes]:
    """Return the bodies of frames that give jobs to an engine."""
    source = random.Random(first)
    grammar = None
    if args.choices:
        labels = [f"{number:02d} label" for number in range(args.choices)]
        grammar = GrammarSpec(GrammarKind.CHOICE, json.dumps(labels))
    bodies = []
    for number in range(first, first + num_jobs):
        ids = array("i", (source.randrange(3, args.vocab_size) for _ in range(args.prompt_tokens)))
        params = SamplingParams(
            max_tokens=args.output_tokens,
            temperature=0.6,
            ignore_eos=True,
            seed=number,
            grammar=grammar,
        )
        request = Request(number, (), params, cache_salt="tenant:t", lane="1:t", tenant="t")
        bodies.append(COMMANDS.encode(AddRequest(request, ids.tobytes()))[4:])
    return bodies


def taken(body: bytes) -> Request:
    """Do what the engine process does with a frame."""
    command = COMMANDS.decode(body)
    assert isinstance(command, AddRequest)
    return command.unpacked()


def run(engine: Engine, bodies: list[bytes], at_once: int, stages: Stages) -> int:
    """Run jobs to their ends and return the number of steps."""
    take, add = stages.counted(taken, "take off the wire"), stages.counted(engine.add, "add")
    step = stages.counted(engine.step, "step")
    pack = stages.counted(lambda output: REPORTS.encode(pack_step(output, 0.0)), "pack")
    waiting = list(reversed(bodies))
    at_once = at_once or len(waiting)
    num_steps = 0
    while waiting or engine.has_work:
        for _ in range(min(at_once, len(waiting))):
            add(take(waiting.pop()))
        pack(step())
        num_steps += 1
    return num_steps


def inner_stages(engine: Engine) -> dict[str, tuple[Any, str]]:
    """Return the methods that are stages of a step."""
    runner = engine._runner
    return {
        "  plan": (engine._scheduler, "schedule"),
        "  masks": (engine._constrained, "masks"),
        "  set rows up": (runner, "_set_up"),
        "  pass": (runner, "_hidden"),
        "  draw": (runner, "_sample"),
        "  deliver, end": (engine, "_complete"),
        "  settle grammars": (engine, "_settle_grammars"),
    }


def measure_engine(args: argparse.Namespace) -> None:
    """Print what a job costs the engine's thread, by stage."""
    engine = hollow_engine(args)
    run(engine, frames_of(args, NUM_WARM, 10**6), args.at_once, Stages())
    rounds = []
    for number in range(args.rounds):
        bodies, stages = frames_of(args, args.jobs, number * args.jobs), Stages()
        for stage, (owner, method) in inner_stages(engine).items():
            setattr(owner, method, stages.counted(getattr(owner, method), stage))
        begins = time.thread_time(), time.process_time()
        num_steps = run(engine, bodies, args.at_once, stages)
        whole, cpu = time.thread_time() - begins[0], time.process_time() - begins[1]
        for owner, method in inner_stages(engine).values():
            delattr(owner, method)
        engine.reset_prefix_cache()
        rounds.append((whole, cpu, num_steps, stages.spent_s))
    whole, cpu, num_steps, spent = min(rounds, key=lambda each: each[0])
    each = 1e6 / args.jobs
    print(f"engine without a model, {args.jobs} jobs of {args.prompt_tokens} in,", end=" ")
    print(f"{args.output_tokens} out, {num_steps} steps; us a job, the best of {args.rounds}:")
    for stage, seconds in spent.items():
        if seconds:
            print(f"  {stage:<24}{seconds * each:8.1f}")
    print(f"  {'all':<24}{whole * each:8.1f}   (CPU of all threads {cpu * each:.1f})")


def profile_engine(args: argparse.Namespace) -> None:
    """Print where the engine's thread spends its time."""
    engine = hollow_engine(args)
    run(engine, frames_of(args, NUM_WARM, 10**6), args.at_once, Stages())
    bodies = frames_of(args, args.jobs, 0)
    profiler = cProfile.Profile()
    profiler.runcall(run, engine, bodies, args.at_once, Stages())
    pstats.Stats(profiler).sort_stats("tottime").print_stats(60)


class FedProcess:
    """An engine process with the null engine, and what it has ended."""

    def __init__(self, args: argparse.Namespace) -> None:
        config = NullConfig(
            num_pages=100_000, max_num_seqs=args.rows, vocab_size=args.vocab_size, tokens_per_s=1e3
        )
        self.link = EngineLink(StartEngine(null=config), self._take)
        self.num_ended = self.num_steps = 0
        self.more = asyncio.Event()

    def _take(self, report: object) -> None:
        if isinstance(report, StepRecord):
            self.num_ended += len(report.ends)
            self.num_steps += 1
            self.more.set()

    def cpu_s(self) -> float:
        """Return the CPU seconds that the process has used."""
        times = psutil.Process(self.link.pid).cpu_times()
        return float(times.user + times.system)


async def measure_process(args: argparse.Namespace, per_send: int) -> None:
    """Print what a job costs the engine process where jobs come `per_send` at a time."""
    fed = FedProcess(args)
    await fed.link.start(START_S)
    commands = [COMMANDS.decode(body) for body in frames_of(args, args.jobs, 0)]
    before, begins = fed.cpu_s(), time.perf_counter()
    for first in range(0, len(commands), per_send):
        for command in commands[first : first + per_send]:
            fed.link.send(command)
        due = begins + (first + per_send) / args.jobs_per_s
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    while fed.num_ended < args.jobs:
        fed.more.clear()
        await fed.more.wait()
    spent, seconds = fed.cpu_s() - before, time.perf_counter() - begins
    await fed.link.kill()
    print(f"engine process, null engine, {per_send:>3} jobs a time,", end=" ")
    print(f"{args.jobs / seconds:6.0f} jobs/s, {fed.num_steps} steps:", end=" ")
    print(f"{spent / args.jobs * 1e6:6.1f} us of CPU a job")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=4000)
    parser.add_argument("--prompt-tokens", type=int, default=200)
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--choices", type=int, default=0, help="labels of a grammar, 0 = none")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--at-once", type=int, default=8, help="jobs that come before each step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs-per-s", type=float, default=500.0)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("--no-process", action="store_true")
    args = parser.parse_args()
    if args.profile:
        profile_engine(args)
        return 0
    measure_engine(args)
    if not args.no_process and not args.choices:
        for per_send in (1, 32):
            asyncio.run(measure_process(args, per_send))
    return 0


if __name__ == "__main__":
    sys.exit(main())
