"""What a long prompt costs on its way from `submit_many` to the engine process, stage by stage.

All jobs of the workload `shared8x2048` at once: 2,148 token ids each, beginning with one of eight
prefixes. First every stage by itself, then the whole way through a worker with the null engine.

    python -P benchmarks/prompt_path.py --jobs 512
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.bench.workloads import shared_prefix
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.sampling.row_table import RowTable
from tokenbus.engine.scheduling.chunk_sizer import ChunkSizer
from tokenbus.engine.scheduling.page_pool import PagePool
from tokenbus.engine.scheduling.scheduler import Scheduler
from tokenbus.engine.scheduling.sequence import Sequence
from tokenbus.engine.text.prompt_ids import id_range
from tokenbus.engine.types import EngineLimits, Request
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.pool_status import read_status
from tokenbus.producer.contract.new_job import NewJob, as_request, new_job
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.scripts import Bounds, Budget
from tokenbus.producer.server.embedded import start_private
from tokenbus.worker.bench.measure.processes import cpu_times
from tokenbus.worker.engine.step_log import read_step_logs
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.messages.engine import COMMANDS, AddRequest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.producer.scripts import Scripts

POOL = "intake"
WIDE = Bounds(10**12, 10**12)
PAGE_SIZE = 16
# What engines on a GPU use.
ENGINE_PAGE_SIZE = 64
VOCAB_SIZE = 151_936
NUM_PAGES = 200_000
BATCH = 48
BUDGET = Budget(
    pages=NUM_PAGES,
    page_size=PAGE_SIZE,
    total_pages=NUM_PAGES,
    max_jobs=32,
    max_rows=4096,
    affinity_ms=100,
)
NUM_OUTPUT = 128
# Rounds of the whole way, the first of which warms everything up.
NUM_ROUNDS = 4
# Until the engine is idle and has written its log.
_SETTLE_S = 1.5


def requests(num_jobs: int, round_idx: int, vocab_size: int) -> list[dict[str, Any]]:
    """Return the fields of every job; seeds name them in the engine's log."""
    prompts = shared_prefix(8).prompts
    return [
        {
            "token_ids": [token % vocab_size for token in prompts[number % len(prompts)]],
            "max_tokens": NUM_OUTPUT,
            "ignore_eos": True,
            "seed": round_idx * num_jobs + number,
            "cache_group": f"round-{round_idx}",
        }
        for number in range(num_jobs)
    ]


def each_us(act: Callable[[int], object], num_jobs: int) -> float:
    """Return the CPU time of one act in microseconds, the best of three rounds."""
    times = []
    for _ in range(3):
        started_at = time.process_time()
        for number in range(num_jobs):
            act(number)
        times.append((time.process_time() - started_at) / num_jobs * 1e6)
    return min(times)


def taken(frame: bytes) -> object:
    """Do what the engine process does with a frame."""
    command = COMMANDS.decode(frame)
    return command.unpacked() if isinstance(command, AddRequest) else command


def admitted_us(frames: list[bytes]) -> float:
    """Return what the engine pays for a job before its prompt is computed, in us of CPU.

    The ids are looked at, their pages hashed and looked up, and rows of the sampler filled in; the
    first of each prefix is taken as computed.
    """
    requests = [taken(frame) for frame in frames]
    table = RowTable(len(requests), (1,), torch.device("cpu"))
    times = []
    for _ in range(5):
        sizer = ChunkSizer(1 << 20, None)
        scheduler = Scheduler(PagePool(NUM_PAGES, ENGINE_PAGE_SIZE), sizer, max_num_seqs=512)
        started_at = time.process_time()
        for number, request in enumerate(requests):
            assert isinstance(request, Request)
            id_range(request.prompt_ids)
            scheduler.add([Sequence(request, 0, number, (1,))])
        for seq in scheduler.schedule().admitted:
            assert seq.row is not None
            table.write(seq.row, seq.request.params, 0)
        times.append((time.process_time() - started_at) / len(requests) * 1e6)
    return min(times)


def measure_processes(num_jobs: int) -> list[NewJob]:
    """Print what a job costs the producer, the worker and the engine process beside all calls."""
    given = requests(num_jobs, 0, VOCAB_SIZE)
    new = [new_job(as_request(fields, {})) for fields in given]
    limits = EngineLimits("null", NUM_PAGES, PAGE_SIZE, 4096, 512, (), VOCAB_SIZE)
    preparer = PromptPreparer(build_null_tokenizer(), limits)
    raw = [job.request.encode() for job in new]
    prepared = [preparer.tokenise(preparer.read(text)) for text in raw]
    adds = [job.to_engine(number, 1, "1:default", ((),), ()) for number, job in enumerate(prepared)]
    frames = [COMMANDS.encode(add)[4:] for add in adds]
    stages: dict[str, Callable[[int], object]] = {
        "producer: check and write the request": lambda k: new_job(as_request(given[k], {})),
        "worker: read and check it": lambda k: preparer.tokenise(preparer.read(raw[k])),
        "worker: hand it to the engine": lambda k: COMMANDS.encode(adds[k]),
        "engine process: take it": lambda k: taken(frames[k]),
    }
    print(f"{len(raw[0])} bytes a request, {len(frames[0])} to the engine; us of CPU a job:")
    for name, act in stages.items():
        print(f"  {name:<39}{each_us(act, num_jobs):7.1f}")
    print(f"  {'engine process: check, hash and admit it':<39}{admitted_us(frames):6.1f}")
    return new


async def _script_us(scripts: Scripts) -> float:
    stats: dict[str, Any] = await scripts.redis.info("commandstats")
    return float(sum(stats.get(f"cmdstat_{n}", {"usec": 0})["usec"] for n in ("evalsha", "eval")))


async def _server_us(scripts: Scripts) -> float:
    spent: dict[str, Any] = await scripts.redis.info("cpu")
    return (float(spent["used_cpu_user"]) + float(spent["used_cpu_sys"])) * 1e6


async def measure_server(scripts: Scripts, new: list[NewJob]) -> None:
    """Print what a job costs the server: inside the scripts, and with reading and writing."""
    await scripts.lease.reconcile("bench", 1, 600_000, NUM_PAGES, PAGE_SIZE)
    await scripts.queue.submit_many(new[:1], WIDE)
    await scripts.lease.pull("bench", 1, BUDGET)
    marks = [(await _script_us(scripts), await _server_us(scripts))]
    for first in range(1, len(new), BATCH):
        await scripts.queue.submit_many(new[first : first + BATCH], WIDE)
    marks.append((await _script_us(scripts), await _server_us(scripts)))
    num_pulled = 0
    while pulled := len((await scripts.lease.pull("bench", 1, BUDGET)).jobs):
        num_pulled += pulled
    marks.append((await _script_us(scripts), await _server_us(scripts)))
    counts = (("submit", len(new) - 1), ("pull", num_pulled))
    for (name, count), before, after in zip(counts, marks, marks[1:], strict=False):
        script, whole = ((b - a) / count for a, b in zip(before, after, strict=True))
        print(f"  server: {name:<8}{script:7.1f} in the script, {whole:7.1f} with input and output")


def _start_worker(
    redis_url: str, pool: str, folder: str, publishers: str
) -> subprocess.Popen[bytes]:
    env = {
        "TOKENBUS_ENGINE": "null",
        "TOKENBUS_NULL_TOKENS_PER_S": "50",
        "TOKENBUS_MAX_NUM_SEQS": "512",
        "TOKENBUS_NUM_PAGES": str(NUM_PAGES),
        "TOKENBUS_STEP_LOG": folder,
        "TOKENBUS_PUBLISHERS": publishers,
        "TOKENBUS_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "worker"]
    return subprocess.Popen([*command, "--redis", redis_url, "--pool", pool], env=os.environ | env)


async def _round(
    client: AsyncClient, worker: int, held: str, num_jobs: int, folder: str, idx: int
) -> None:
    """Send all jobs once and print when the engine process had them."""
    given = requests(num_jobs, idx, NullConfig().vocab_size)
    redis = client.scripts.redis
    before, own_s = await cpu_times(redis, [worker]), time.process_time()
    started_at = time.monotonic()
    jobs = []
    for first in range(0, num_jobs, BATCH):
        jobs += await client.submit_many(given[first : first + BATCH])
    submitted_ms = (time.monotonic() - started_at) * 1e3
    own_s = time.process_time() - own_s
    await _until_held(client, held, num_jobs)
    spent = (await cpu_times(redis, [worker])).since(before)
    for job in jobs:
        if isinstance(job, ProducerError):
            raise job
        await client.cancel(job.job_id)
    await asyncio.sleep(_SETTLE_S)
    seeds = range(idx * num_jobs, (idx + 1) * num_jobs)
    handover_times = read_step_logs(Path(folder))
    arrived = sorted((handover_times[seed].added_s - started_at) * 1e3 for seed in seeds)
    middle, last = arrived[num_jobs // 2], arrived[-1]
    cpu = " / ".join(
        f"{seconds / num_jobs * 1e6:.0f}"
        for seconds in (own_s, spent.server, spent.worker, spent.publisher)
    )
    print(f"  first {arrived[0]:6.1f}, half {middle:6.1f}, last {last:6.1f}; "
          f"submitted after {submitted_ms:6.1f}; {cpu}")  # fmt: skip


async def _held_key(client: AsyncClient) -> str:
    """Wait for the worker and return where the server has what it holds."""
    scripts = client.scripts
    while not (found := (await read_status(scripts.redis, scripts.keys)).workers):  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    return scripts.keys.of("held", found[0])


async def _until_held(client: AsyncClient, held: str, num_jobs: int) -> None:
    """Wait until the worker has pulled all jobs and handed them on."""
    redis: Any = client.scripts.redis
    while await redis.hlen(held) < num_jobs:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)


async def measure_way(num_jobs: int, publishers: str) -> None:
    """Print when jobs that are submitted at once reach the engine process."""
    server = await asyncio.to_thread(start_private)
    with tempfile.TemporaryDirectory() as folder:
        worker = _start_worker(server.url, POOL, folder, publishers)
        try:
            async with await AsyncClient.connect(server.url, pool=POOL) as client:
                held = await _held_key(client)
                print(
                    "ms from the first submit until the engine process has a job; us of CPU a job"
                )
                print("of producer / server / worker / publishers until all are there:")
                for idx in range(NUM_ROUNDS):
                    await _round(client, worker.pid, held, num_jobs, folder, idx)
        finally:
            worker.terminate()
            worker.wait()
            await asyncio.to_thread(server.close)


async def measure_alone(new: list[NewJob]) -> None:
    """Run the scripts of the queue on a server of their own."""
    server = await asyncio.to_thread(start_private)
    try:
        async with await AsyncClient.connect(server.url, pool=POOL) as client:
            await measure_server(client.scripts, new)
    finally:
        await asyncio.to_thread(server.close)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--jobs", type=int, default=512)
    parser.add_argument("--publishers", default="auto")
    args = parser.parse_args()
    asyncio.run(measure_alone(measure_processes(args.jobs)))
    asyncio.run(measure_way(args.jobs, args.publishers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
