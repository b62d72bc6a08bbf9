"""Workers for tests: in this process or in one of their own, always with the null engine."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from patience import PATIENCE_S
from workers.stem import forked_children

from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_engine import pseudo_token
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.supervisor import Worker

if TYPE_CHECKING:
    import signal
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.contract.events import Event, Finish
    from tokenbus.producer.scripts import Scripts

_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)


def null_settings(pool: str, redis_url: str, **values: Any) -> WorkerSettings:
    """Return settings of a worker with the null engine."""
    defaults = {"engine": "null", "log_level": "error", "pool": pool, "redis_url": redis_url}
    return WorkerSettings.load(**(defaults | values))


def expected_ids(seed: int, count: int, choice: int = 0) -> list[int]:
    """Return what the null engine generates in one unbroken run."""
    config = NullConfig()
    return [
        pseudo_token(seed, choice, position, config.first_id, config.vocab_size)
        for position in range(count)
    ]


def expected_text(seed: int, count: int, choice: int = 0) -> str:
    """Return the text of an unbroken run."""
    text = build_null_tokenizer().decode(expected_ids(seed, count, choice))
    assert isinstance(text, str)
    return text


def num_waiting(worker: Worker) -> int:
    """Count the jobs that a worker holds without pages."""
    return sum(job.is_waiting for job in worker._held_jobs.in_phase(Phase.PULLED))


@dataclass(slots=True)
class Story:
    """What one reader saw of a job, each index checked as it came; `deltas` by choice."""

    job_id: str
    last: int = 0
    texts: dict[int, str] = field(default_factory=dict)
    ids: dict[int, list[int]] = field(default_factory=dict)
    epochs: set[int] = field(default_factory=set)
    finish: Finish | None = None
    tenant: str = DEFAULT_TENANT
    deltas: dict[int, list[MessageDelta]] = field(default_factory=dict)

    @property
    def address(self) -> str:
        """Return the address of the job, as keys carry it."""
        return JobAddress(self.job_id, self.tenant).text

    def see(self, event: Event) -> None:
        """Take one event; every index once, in order, without a gap, and one end."""
        assert self.finish is None, "an event after the terminal one"
        self.epochs.add(event.epoch)
        assert event.start == self.last + 1
        assert event.to == self.last + len(event.ids)
        self.last = event.to
        for choice, delta in event.deltas:
            self.deltas.setdefault(choice, []).append(delta)
        if event.finish is not None:
            self.finish = event.finish
            return
        self.texts[event.choice] = self.texts.get(event.choice, "") + event.text
        self.ids.setdefault(event.choice, []).extend(event.ids)
        assert event.ends[-1] == len(self.texts[event.choice])

    @property
    def text(self) -> str:
        """Return the text of the first choice."""
        return self.texts.get(0, "")

    @property
    def reason(self) -> str:
        """Return why the job ended."""
        assert self.finish is not None, f"job {self.job_id} did not end"
        return self.finish.reason


async def follow(
    client: AsyncClient,
    job: str | Job,
    on_event: Callable[[Story], None] | None = None,
    tenant: str = DEFAULT_TENANT,
) -> Story:
    """Read a job to its end."""
    story = Story(job if isinstance(job, str) else job.job_id)
    async with asyncio.timeout(PATIENCE_S):
        async for event in client.stream(job, tenant=tenant):
            story.see(event)
            if on_event is not None:
                on_event(story)
    assert story.finish is not None
    return story


async def until(condition: Callable[[], bool]) -> None:
    """Wait until something that raises no event has happened."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@asynccontextmanager
async def worker(
    pool: str, redis_url: str, limit_s: float = 2 * PATIENCE_S, /, **values: Any
) -> AsyncIterator[Worker]:
    """Run a worker beside the test."""
    with forked_children():
        async with asyncio.timeout(limit_s):
            async with Worker(null_settings(pool, redis_url, **values)) as running:
                yield running


@dataclass(slots=True)
class WorkerProcess:
    """A worker as an operator starts it, to be killed, stopped and interrupted."""

    process: asyncio.subprocess.Process

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the worker process alone."""
        self.process.send_signal(number)

    async def wait(self) -> int:
        """Wait for its end and return the exit status."""
        async with asyncio.timeout(PATIENCE_S):
            return await self.process.wait()


@asynccontextmanager
async def worker_process(
    pool: str, redis_url: str, stderr: int = subprocess.PIPE, **values: Any
) -> AsyncIterator[WorkerProcess]:
    """Run a worker in a process of its own; it is killed at the end."""
    given = {"engine": "null", "log_level": "error", "log_format": "json"} | values
    env = {f"TOKENBUS_{name.upper()}": str(value) for name, value in given.items()}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        "-c",
        _COMMAND,
        "worker",
        "--redis",
        redis_url,
        "--pool",
        pool,
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
    )
    try:
        yield WorkerProcess(process)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def command(scripts: Scripts, *args: bytes | str | float) -> Any:
    """Run one Redis command as it stands."""
    run: Callable[..., Awaitable[Any]] = scripts.redis.execute_command
    return await run(*args)


async def leaked_keys(scripts: Scripts) -> list[str]:
    """List the pool's keys that have no TTL and belong to no live job or worker."""
    prefix = f"{{tb:{scripts.keys.pool}"
    counted = ("floor", "drain", "load", "dead", "letters", "resting:", "line")
    kept = ("bell", "workers", "worker:", *counted)
    leaked = []
    async for raw in scripts.redis.scan_iter(f"{prefix}*", count=1000):
        key = raw.decode()
        name = key.split("}:", 1)[1]
        # A key that has gone since it was found has none either, but says so by -2.
        if not name.startswith(kept) and await scripts.redis.pttl(key) == -1:
            leaked.append(key)
    return sorted(leaked)
