"""What the arq adapter adds to a job: its time less that from the pool's acceptance to its end.

One adapter process before a worker with made-up tokens, a thousand jobs under way. Added is the
time from `enqueue_job` to the pool's acceptance, and from the announced end to the result in hand.

    python -P benchmarks/arq_adapter.py
    python -P benchmarks/arq_adapter.py --poll-delay-s 0.5 --result-poll-s 0.5   # arq's own polls
    python -P benchmarks/arq_adapter.py --over-s 0                               # all at once
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.embedded import start_private
from tokenbus.worker.control.backend import Results, connect

if TYPE_CHECKING:
    from arq.connections import ArqRedis

    from tokenbus.producer.server.embedded import EmbeddedServer

POOL = "default"
NUM_TOKENS = 20
START_TIMEOUT_S = 60.0
BAR_MS = 60.0
_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)


@dataclass(slots=True)
class Times:
    """Wall-clock seconds of each job, all on one machine."""

    enqueued: dict[str, float] = field(default_factory=dict)
    accepted: dict[str, float] = field(default_factory=dict)
    ended: dict[str, float] = field(default_factory=dict)
    returned: dict[str, float] = field(default_factory=dict)

    def before_ms(self) -> list[float]:
        """Return the times from `enqueue_job` to the acceptance."""
        return sorted((self.accepted[j] - at) * 1000 for j, at in self.enqueued.items())

    def after_ms(self) -> list[float]:
        """Return the times from the end to the result."""
        return sorted((at - self.ended[j]) * 1000 for j, at in self.returned.items())

    def added_ms(self) -> list[float]:
        """Return what arq and the adapter added to each job."""
        return sorted(
            1000 * (self.accepted[j] - at + self.returned[j] - self.ended[j])
            for j, at in self.enqueued.items()
        )

    def most_at_once(self) -> int:
        """Return the largest number of jobs between their two ends."""
        steps = sorted([(at, 1) for at in self.enqueued.values()]
            + [(at, -1) for at in self.returned.values()])  # fmt: skip
        most = now = 0
        for _, step in steps:
            now += step
            most = max(most, now)
        return most


def _start(server: EmbeddedServer, *command: str, **settings: object) -> subprocess.Popen[bytes]:
    env = {f"TOKENBUS_{name.upper()}": str(value) for name, value in settings.items()}
    args = [*command, "--redis", server.url, "--pool", POOL, "--log-level", "error"]
    return subprocess.Popen([sys.executable, "-P", "-c", _COMMAND, *args], env=os.environ | env)


def _cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def _listen(client: AsyncClient, times: Times) -> None:
    """Note when each job's end is announced."""
    redis: Any = client.scripts.redis
    channel = redis.pubsub(ignore_subscribe_messages=True)
    await channel.subscribe(client.scripts.keys.of("ended"))
    async for message in channel.listen():
        times.ended[message["data"].decode()] = time.time()


async def _run_job(redis: ArqRedis, results: Results, job_id: str, times: Times) -> None:
    times.enqueued[job_id] = time.time()
    job = await redis.enqueue_job(
        "generate", prompt="x", max_tokens=NUM_TOKENS, seed=1, _job_id=job_id
    )
    if job is None:
        raise RuntimeError(f"arq already has a job {job_id}")
    answer = await results.of(job)
    times.returned[job_id] = time.time()
    if answer["usage"]["completion_tokens"] != NUM_TOKENS:
        raise RuntimeError(f"{job_id} has {answer['usage']}")


async def _send(redis: ArqRedis, results: Results, args: argparse.Namespace, times: Times) -> None:
    """Send all jobs, evenly over a time, and wait for their results."""
    began = time.monotonic()
    async with asyncio.TaskGroup() as tasks:
        for number in range(args.jobs):
            due = began + args.over_s * number / args.jobs
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            tasks.create_task(_run_job(redis, results, f"job-{number}", times))


async def _measure(
    server: EmbeddedServer, adapter: int, args: argparse.Namespace
) -> tuple[Times, float]:
    times = Times()
    async with await AsyncClient.connect(server.url, pool=POOL) as client:
        redis = connect(server.url)
        listening = asyncio.create_task(_listen(client, times))
        async with Results(redis, poll_delay_s=args.result_poll_s) as results:
            async with asyncio.timeout(START_TIMEOUT_S):
                await _run_job(redis, results, "first", Times())
            cpu_s = _cpu_s(adapter)
            await _send(redis, results, args, times)
            cpu_s = _cpu_s(adapter) - cpu_s
        listening.cancel()
        with suppress(asyncio.CancelledError):
            await listening
        pool: Any = client.scripts.redis
        for job_id in times.enqueued:
            created = await pool.hget(client.scripts.keys.of("job", job_id), "created")
            times.accepted[job_id] = int(created) / 1000
        await redis.aclose(close_connection_pool=True)
    return times, cpu_s


def main() -> int:
    """Measure and print; return 1 if the median job got more than the bar added."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--tokens-per-s", type=float, default=1.5, help="of each job")
    parser.add_argument("--over-s", type=float, default=12.0, help="time over which jobs arrive")
    parser.add_argument("--poll-delay-s", type=float, default=0.02, help="of the adapter")
    parser.add_argument("--result-poll-s", type=float, default=0.02, help="of the backend")
    args = parser.parse_args()
    with ExitStack() as stack:
        server = start_private()
        stack.callback(server.close)
        worker = _start(
            server, "worker", "--engine", "null", "--num-pages", str(16 * args.jobs),
            "--max-num-seqs", str(args.jobs), null_tokens_per_s=args.tokens_per_s,
            max_pull_jobs=256,
        )  # fmt: skip
        adapter = _start(
            server, "control", "adapter", "--poll-delay-s", str(args.poll_delay_s),
            "--max-jobs", str(2 * args.jobs),
        )  # fmt: skip
        for process in (worker, adapter):
            stack.callback(process.wait)
            stack.callback(process.kill)
        times, cpu_s = asyncio.run(_measure(server, adapter.pid, args))
    print(f"{args.jobs} jobs within {args.over_s:g} s, {times.most_at_once()} at once; polls of"
        f" adapter and backend {args.poll_delay_s:g} and {args.result_poll_s:g} s")  # fmt: skip
    for name, found in (("before", times.before_ms()), ("after", times.after_ms()),
        ("added", times.added_ms())):  # fmt: skip
        p50, p95, p99 = (found[int(share * (len(found) - 1))] for share in (0.5, 0.95, 0.99))
        print(f"  {name:7} p50 {p50:6.0f} ms  p95 {p95:6.0f} ms  p99 {p99:6.0f} ms")
    print(f"  adapter CPU per job {1000 * cpu_s / args.jobs:.2f} ms")
    added = times.added_ms()
    return 0 if added[len(added) // 2] <= BAR_MS else 1


if __name__ == "__main__":
    sys.exit(main())
