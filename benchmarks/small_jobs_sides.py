"""The processes of `small_jobs.py` and `small_jobs_scale.py`: clients of tokenbus, arq and saq.

    python -P benchmarks/small_jobs_sides.py ROLE

Its options are the first line on stdin, as JSON. A client connects, sends a few jobs to warm up,
says a line of JSON, and begins at the next line it gets; then it sends all its jobs, takes every
answer, checks it, and says what it took. A worker runs until its stdin closes. Whatever happens,
none outlives its time limit. Nothing of tokenbus is imported before a role asks for it, so that a
client runs with the release on its PYTHONPATH, this one or an earlier one. It is one file because
each role is the other end of another.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import math
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

PROMPT_TOKENS = 8
# What the null engine draws from, and where its words begin.
VOCAB_SIZE, FIRST_ID = 512, 256
# The first are running before the last are sent.
STREAMS_TOGETHER, RESULTS_TOGETHER = 64, 256
SUBMITTERS = 32
SETTLE_S = 1.5


@dataclass(slots=True)
class Outcome:
    """What a client says at its end; times are CLOCK_MONOTONIC in seconds.

    `ended` has the end of each job in the order in which they were sent.
    """

    began_s: float = 0.0
    ended_s: float = 0.0
    cpu_s: float = 0.0
    num_ended: int = 0
    num_wrong: int = 0
    ended: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    note: str = ""


def say(message: dict[str, Any]) -> None:
    """Write one line for the parent."""
    print(json.dumps(message), flush=True)


async def told() -> bool:
    """Wait for a line of the parent; tell whether there was one."""
    return bool(await asyncio.to_thread(sys.stdin.readline))


def named(*places: str) -> Any:
    """Import the first of some names, `module:name`, that this release of tokenbus has.

    Earlier names stand first: an installation of this release offers its own to any other.
    """
    for place in places:
        module, _, name = place.partition(":")
        try:
            return getattr(importlib.import_module(f"tokenbus.{module}"), name)
        except (ImportError, AttributeError):
            continue
    raise ImportError(f"this release of tokenbus has none of {', '.join(places)}")


class TokenbusClient:
    """Small jobs through a pool, read by a stream each or by batches of results."""

    def __init__(self, client: Any, options: dict[str, Any]) -> None:
        self._client = client
        self._options = options
        self._draw = named("engine.null:pseudo_token", "engine.null.null_engine:pseudo_token")
        # A release from before tenants had jobs of their own takes the id alone.
        self._takes_job = "tenant" in inspect.signature(client.stream).parameters
        self.outcome = Outcome()

    def _requests(self, first: int, plan: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                "token_ids": [(number * 31 + idx * 7) % VOCAB_SIZE for idx in range(PROMPT_TOKENS)],
                "max_tokens": int(self._options["output_tokens"]),
                "seed": number,
                "ignore_eos": True,
                **fields,
            }
            for number, fields in enumerate(plan, first)
        ]

    async def send(self, first: int, plan: Sequence[dict[str, Any]], mode: str) -> None:
        """Send jobs with these fields and seeds from `first` on; return once all have ended."""
        requests = self._requests(first, plan)
        self.outcome = Outcome(ended=[0.0] * len(plan))
        size = RESULTS_TOGETHER if mode == "results" else STREAMS_TOGETHER
        cpu_s = time.process_time()
        self.outcome.began_s = time.monotonic()
        async with asyncio.TaskGroup() as tasks:
            for start in range(0, len(requests), size):
                part = requests[start : start + size]
                jobs = await self._client.submit_many(part)
                refused = [each for each in jobs if isinstance(each, Exception)]
                if refused:
                    raise refused[0]
                if mode == "results":
                    tasks.create_task(self._take_results(start, first, jobs))
                    continue
                for idx, job in enumerate(jobs, start):
                    tasks.create_task(self._read(idx, first + idx, job))
        self.outcome.cpu_s = time.process_time() - cpu_s
        self.outcome.ended_s = max(self.outcome.ended, default=self.outcome.began_s)

    async def latencies(self, first: int, count: int, mode: str) -> None:
        """Send one job after the other to an idle pool; keep the time from submit to result."""
        self.outcome = Outcome(began_s=time.monotonic())
        cpu_s = time.process_time()
        for request in self._requests(first, [{}] * count):
            began_s = time.monotonic()
            ids, ended_s = await self._one(request, mode)
            self.outcome.num_wrong += list(ids) != self._expected(request["seed"])
            self.outcome.num_ended += 1
            self.outcome.latencies_ms.append((ended_s - began_s) * 1e3)
            # Until the worker has nothing left to do for it.
            await asyncio.sleep(self._options["pause_s"])
        self.outcome.ended_s = time.monotonic()
        self.outcome.cpu_s = time.process_time() - cpu_s

    async def _one(self, request: dict[str, Any], mode: str) -> tuple[Sequence[int], float]:
        """Take one job to its result; return its ids and when they were there."""
        if mode == "wait":
            result = await self._client.submit(wait=True, **request)
            return result.choices[0].ids, time.monotonic()
        job = await self._client.submit(**request)
        given = job if self._takes_job else job.job_id
        if mode == "result":
            result = await self._client.result(given)
            return result.choices[0].ids, time.monotonic()
        ids: list[int] = []
        async for event in self._client.stream(given):
            ids.extend(event.ids)
        return ids, time.monotonic()

    async def _read(self, idx: int, seed: int, job: Any) -> None:
        """Read one stream: every token once, in order, and one end."""
        ids: list[int] = []
        is_right, last, num_ends = True, 0, 0
        async for event in self._client.stream(job if self._takes_job else job.job_id):
            if event.finish is not None:
                num_ends += 1
                is_right = is_right and event.finish.reason == "length"
                continue
            is_right = is_right and event.start == last + 1 and bool(event.text)
            last = event.to
            ids.extend(event.ids)
        self._note(idx, is_right and num_ends == 1 and ids == self._expected(seed))

    async def _take_results(self, start: int, first: int, jobs: Sequence[Any]) -> None:
        """Take the answers of many jobs in one call."""
        results = await self._client.results(jobs)
        for idx, result in enumerate(results, start):
            is_right = not isinstance(result, Exception) and result.finish.reason == "length"
            self._note(
                idx,
                is_right
                and list(result.choices[0].ids) == self._expected(first + idx)
                and bool(result.choices[0].text),
            )

    def _note(self, idx: int, is_right: bool) -> None:
        self.outcome.ended[idx] = time.monotonic()
        self.outcome.num_ended += 1
        self.outcome.num_wrong += not is_right

    def _expected(self, seed: int) -> list[int]:
        length = int(self._options["output_tokens"])
        return [self._draw(seed, 0, position, FIRST_ID, VOCAB_SIZE) for position in range(length)]


async def tokenbus_client(options: dict[str, Any]) -> None:
    """Send a plan of jobs, or measure single ones where `latency` says how."""
    kind = named("producer.client:AsyncClient", "producer.client.async_client:AsyncClient")
    async with await kind.connect(options["url"], pool=options["pool"]) as client:
        side = TokenbusClient(client, options)
        mode, first = options["mode"], int(options["first"])
        is_missing = (mode == "results" and not hasattr(client, "results")) or (
            mode == "wait" and "wait" not in inspect.signature(client.submit).parameters
        )
        if is_missing:
            say({"missing": f"this release has no `{mode}`"})
            return
        plan = [part["fields"] for part in options["plan"] for _ in range(part["count"])]
        await side.send(first, [{}] * int(options["warm_up"]), "stream")
        say({"ready": str(inspect.getfile(kind))})
        if not await told():
            return
        first += int(options["warm_up"])
        if options["latency"]:
            await side.latencies(first, len(plan), mode)
            await asyncio.sleep(SETTLE_S)
            side.outcome.latencies_ms = beyond_engine(side.outcome, first, options["step_log"])
        else:
            await side.send(first, plan, mode)
        say({name: getattr(side.outcome, name) for name in Outcome.__slots__})


def beyond_engine(outcome: Outcome, first: int, folder: str) -> list[float]:
    """Return each latency less the time that the engine had the job, by the engine's own log."""
    read = named("worker.step_log:read_step_logs", "worker.engine.step_log:read_step_logs")
    times = read(Path(folder))
    beyond = []
    for seed, latency_ms in enumerate(outcome.latencies_ms, first):
        noted = times.get(seed)
        if noted is None or not len(noted.tokens_s) or math.isnan(noted.tokens_s[-1]):
            outcome.note = "the engine's log lacks jobs"
            continue
        beyond.append(latency_ms - float(noted.tokens_s[-1] - noted.added_s) * 1e3)
    return beyond


async def noop(_: dict[str, Any], token_ids: list[int]) -> int:
    """Be the job of arq and saq: no work at all."""
    return token_ids[0]


def _prompts(count: int) -> list[list[int]]:
    return [
        [(number * 31 + idx * 7) % VOCAB_SIZE for idx in range(PROMPT_TOKENS)]
        for number in range(count)
    ]


async def arq_worker(options: dict[str, Any]) -> None:
    """Run arq's worker; it needs no more than a function and its settings."""
    from arq.connections import RedisSettings
    from arq.worker import Worker

    worker = Worker(
        functions=[noop],
        redis_settings=RedisSettings.from_dsn(options["url"]),
        max_jobs=options["max_jobs"],
        poll_delay=options["poll_s"],
        handle_signals=False,
        log_results=False,
    )
    await _until_closed(worker.async_run())


async def arq_client(options: dict[str, Any]) -> None:
    """Enqueue with arq's pool, then take each result with its job's `result`."""
    from arq.connections import RedisSettings, create_pool

    pool = await create_pool(RedisSettings.from_dsn(options["url"]))

    async def send(prompts: Sequence[list[int]], outcome: Outcome) -> None:
        jobs: list[Any] = [None] * len(prompts)

        async def enqueue(idx: int) -> None:
            jobs[idx] = await pool.enqueue_job("noop", prompts[idx])

        async def take(idx: int) -> None:
            answer = await jobs[idx].result(timeout=60, poll_delay=options["poll_s"])
            outcome.num_wrong += answer != prompts[idx][0]
            outcome.num_ended += 1

        await _by_several(enqueue, len(prompts), SUBMITTERS)
        await _by_several(take, len(prompts), options["readers"])

    await _measured(options, send)
    await pool.aclose()


async def saq_worker(options: dict[str, Any]) -> None:
    """Run saq's worker on its queue."""
    from saq import Queue, Worker

    queue = Queue.from_url(options["url"], max_concurrent_ops=options["max_jobs"])
    await _until_closed(Worker(queue, functions=[noop], concurrency=options["max_jobs"]).start())


async def saq_client(options: dict[str, Any]) -> None:
    """Enqueue and take results with saq's `map`, some calls at once."""
    from saq import Queue

    queue = Queue.from_url(options["url"], max_concurrent_ops=SUBMITTERS)
    await queue.connect()

    async def send(prompts: Sequence[list[int]], outcome: Outcome) -> None:
        size = options["map_size"]

        async def call(idx: int) -> None:
            part = prompts[idx * size : (idx + 1) * size]
            given = [{"token_ids": each} for each in part]
            answers = await queue.map("noop", given, timeout=60, poll_interval=options["poll_s"])
            outcome.num_ended += len(answers)
            outcome.num_wrong += sum(
                answer != each[0] for answer, each in zip(answers, part, strict=True)
            )

        await _by_several(call, -(-len(prompts) // size), options["readers"])

    await _measured(options, send)
    await queue.disconnect()


async def _measured(
    options: dict[str, Any], send: Callable[[Sequence[list[int]], Outcome], Awaitable[None]]
) -> None:
    """Warm up, wait for the word, send everything and say what it took."""
    await send(_prompts(int(options["warm_up"])), Outcome())
    prompts = _prompts(int(options["jobs"]))
    say({"ready": ""})
    if not await told():
        return
    outcome = Outcome(began_s=time.monotonic())
    cpu_s = time.process_time()
    await send(prompts, outcome)
    outcome.cpu_s = time.process_time() - cpu_s
    outcome.ended_s = time.monotonic()
    say({name: getattr(outcome, name) for name in Outcome.__slots__})


async def _by_several(call: Callable[[int], Awaitable[None]], count: int, num_tasks: int) -> None:
    """Call for each number, in order, by so many tasks."""
    numbers = iter(range(count))

    async def work() -> None:
        for number in numbers:
            await call(number)

    await asyncio.gather(*(work() for _ in range(min(num_tasks, count))))


async def _until_closed(running: Awaitable[Any]) -> None:
    """Run a worker until the parent closes stdin."""
    task = asyncio.ensure_future(running)
    say({"ready": ""})
    closed = asyncio.create_task(told())
    await asyncio.wait([task, closed], return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


ROLES: dict[str, Callable[[dict[str, Any]], Awaitable[None]]] = {
    "tokenbus-client": tokenbus_client,
    "arq-worker": arq_worker,
    "arq-client": arq_client,
    "saq-worker": saq_worker,
    "saq-client": saq_client,
}


def main() -> int:
    """Play the role."""
    role, options = sys.argv[1], json.loads(sys.stdin.readline())
    signal.alarm(int(options["limit_s"]))

    async def play() -> None:
        await ROLES[role](options)

    try:
        asyncio.run(play())
    except ModuleNotFoundError as error:
        say({"missing": f"{error.name} is not installed"})
    return 0


if __name__ == "__main__":
    sys.exit(main())
