"""The offline run of a bench: the same jobs and engine without a queue, in its own process.

Runs as `python -m tokenbus.worker.bench.offline`: options as JSON on stdin, a run's tokens/s a line
on stdout. The engine is the one a worker would start; all jobs are given to it in one call.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from typing import TYPE_CHECKING

import msgspec

from tokenbus.engine.errors import EngineError
from tokenbus.engine.text.model_chat import chat_text
from tokenbus.engine.types import GrammarKind, GrammarSpec, Request, SamplingParams
from tokenbus.worker.bench.load.arrivals import arrivals
from tokenbus.worker.bench.load.workload import Workload
from tokenbus.worker.bench.measure.report import Offline
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.engine.process import build
from tokenbus.worker.errors import EngineStartFailed
from tokenbus.worker.messages.engine import StartEngine
from tokenbus.worker.process.env import compute_env
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.worker.bench.load.workload import PlannedJob
    from tokenbus.worker.engine.engine_like import EngineLike


async def measure_offline(options: BenchOptions, on_run: Callable[[int, float], None]) -> Offline:
    """Run the jobs offline `repeats` times; `on_run` is told the number and tokens/s of each.

    Raises: EngineStartFailed with what the engine said.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-m",
        "tokenbus.worker.bench.offline",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=compute_env(),
    )
    try:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(msgspec.json.encode(options))
        process.stdin.close()
        runs: list[tuple[int, int, float]] = []
        async for line in process.stdout:
            runs.append(msgspec.json.decode(line, type=tuple[int, int, float]))
            on_run(len(runs), runs[-1][1] / runs[-1][2])
        code = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if code != 0 or not runs:
        raise EngineStartFailed("offline", f"the offline run ended with {code}, see above")
    num_jobs, num_tokens, _ = runs[0]
    rates = [round(tokens / seconds, 1) for _, tokens, seconds in runs]
    return Offline(rates, num_tokens, num_jobs)


def run_offline(engine: EngineLike, options: BenchOptions) -> tuple[int, int, float]:
    """Generate everything; return jobs, output tokens and the seconds from call to return.

    Raises: EngineError if a sequence ended early or with an error.
    """
    workload = Workload(options)
    planned = [workload.job(a.number) for a in arrivals(options, workload.num_jobs)]
    requests = list(_requests(planned, options))
    num_wanted = sum(job.max_tokens for job in planned)
    num_tokens = num_ended = 0
    started_s = time.perf_counter()
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step().deltas:
            num_tokens += len(delta.token_ids)
            num_ended += delta.finish_reason is not None
            if delta.error is not None:
                raise EngineError(f"sequence {delta.request_id}: {delta.error}")
    duration_s = time.perf_counter() - started_s
    # A label may end before the most tokens that it may have.
    if num_tokens > num_wanted or (num_tokens < num_wanted and not options.choice):
        raise EngineError(f"{num_tokens} tokens were generated instead of {num_wanted}")
    if num_ended != len(planned):
        raise EngineError(f"{num_ended} of {len(planned)} sequences ended")
    return len(planned), num_tokens, duration_s


def _requests(planned: list[PlannedJob], options: BenchOptions) -> Iterator[Request]:
    """Yield what a worker would give to the engine: messages are rendered and tokenised here."""
    tokenizer = None
    if options.messages:
        tokenizer = load_tokenizer(options.model_folder, options.vocab_size)
    for job in planned:
        ids = job.token_ids
        if ids is None:
            assert tokenizer is not None
            text = chat_text(tokenizer, job.messages or ())
            ids = tokenizer.encode(text, add_special_tokens=False)
        grammar = GrammarSpec(GrammarKind.CHOICE, job.choice_source) if job.labels else None
        yield Request(
            job.number,
            tuple(ids),
            SamplingParams(
                max_tokens=job.max_tokens,
                temperature=options.temperature,
                ignore_eos=True,
                seed=job.seed,
                grammar=grammar,
            ),
            priority=job.priority,
            cache_salt=f"group:{job.cache_group}",
        )


def main() -> int:
    """Build the engine and run the jobs as often as asked."""
    # Nothing that prints may come between the lines.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    options = msgspec.json.decode(sys.stdin.buffer.read(), type=BenchOptions)
    settings = WorkerSettings.load(engine=options.engine, **options.worker)
    try:
        engine, _ = build(StartEngine.of(settings.engine_config(), settings.step_log))
        for idx in range(options.repeats):
            figures = run_offline(engine, options.replace(run_idx=options.run_idx + idx))
            print(msgspec.json.encode(figures).decode(), file=out, flush=True)
    except EngineError as error:
        print(f"tokenbus: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    # Helper threads of an engine have nothing left to do.
    code = main()
    sys.stderr.flush()
    os._exit(code)
