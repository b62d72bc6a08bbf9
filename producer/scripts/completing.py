"""Scripts that complete jobs, many to a call."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Self

import msgspec

from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.keys import shard_of
from tokenbus.producer.scripts.runner import is_one_server

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.scripts.runner import ScriptRunner

# Of one call: 64 take the server about as long as a batch of the log scripts.
MAX_COMPLETED = 64
# Counted of one job at most, whatever a finish claims.
_MAX_TOKENS = 10**12

_encode = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class Retention:
    """How long log and result of an ended job stay, in ms."""

    log_ms: int = 120_000
    result_ms: int = 3_600_000


@dataclass(frozen=True, slots=True)
class Completed:
    """A job whose terminal entry stands in its log, and what that says.

    `finish` is the entry's own text, empty where only the last steps are left. `actual` is what
    the job's tenant is charged in the end.
    """

    job_id: str
    finish: str = ""
    actual: int = 0
    failed: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, job_id: str, finish: str, parsed: Finish | None = None) -> Self:
        """Make it of a terminal entry's finish; `parsed` is the same, where it is at hand."""
        parsed = parsed or Finish.parse(finish)
        counts = (
            parsed.usage.prompt_tokens,
            parsed.usage.cached_tokens,
            parsed.usage.completion_tokens,
        )
        prompt, cached, completion = (min(max(0, count), _MAX_TOKENS) for count in counts)
        is_failed = parsed.reason == "failed"
        return cls(job_id, finish, prompt + completion, is_failed, prompt, cached, completion)


class CompletionScripts:
    """Typed calls that complete jobs. Every method raises what `ScriptRunner.run` raises.

    Where one server has records and logs, `complete` is all of it. On a cluster it is `mark_done`,
    `retain` and `expire_records`, a call for each slot.
    """

    def __init__(self, runner: ScriptRunner, keys: Keys, redis: Redis) -> None:
        self._runner = runner
        self._keys = keys
        self.is_one_server = is_one_server(redis)

    async def complete(self, jobs: Sequence[Completed], keep: Retention, ttl_ms: int) -> list[str]:
        """Complete jobs on one server, each once and by itself (R9); `ttl_ms` is the record's.

        Returns: for each job why it could not be completed, empty for all others.
        """
        whys = [""] * len(jobs)
        for shard, numbers in _by_shard(jobs):
            for first in range(0, len(numbers), MAX_COMPLETED):
                part = numbers[first : first + MAX_COMPLETED]
                answers = await self._runner.run(
                    "complete_many",
                    (self._keys.prefix, self._keys.log_prefix(shard)),
                    at_once=True,
                    log_ms=keep.log_ms,
                    result_ms=keep.result_ms,
                    record_ms=ttl_ms,
                    batch=_pack(jobs[number] for number in part),
                )
                for number, answer in zip(part, answers, strict=True):
                    whys[number] = _why(answer)
        return whys

    async def mark_done(self, jobs: Sequence[Completed]) -> list[str]:
        """Take the first step: records `done`, out of what is held, charges corrected (R9).

        Returns: for each job why that could not be done, empty for all others.
        """
        whys: list[str] = []
        for first in range(0, len(jobs), MAX_COMPLETED):
            answers = await self._runner.run(
                "complete_many",
                self._keys.prefix,
                at_once=False,
                log_ms=0,
                result_ms=0,
                record_ms=0,
                batch=_pack(jobs[first : first + MAX_COMPLETED]),
            )
            whys += map(_why, answers)
        return whys

    async def retain(self, jobs: Sequence[Completed], keep: Retention) -> None:
        """Let logs and results of completed jobs expire: the second step."""
        for shard, numbers in _by_shard(jobs):
            await self._runner.run(
                "retain_many",
                self._keys.log_prefix(shard),
                log_ms=keep.log_ms,
                result_ms=keep.result_ms,
                batch=_encode([jobs[number].job_id for number in numbers]),
            )

    async def expire_records(self, jobs: Sequence[Completed], ttl_ms: int) -> None:
        """Take completed jobs out of `ending`, and let record and idempotency entry expire."""
        await self._runner.run(
            "expire_many",
            self._keys.prefix,
            ttl_ms=ttl_ms,
            batch=_encode([job.job_id for job in jobs]),
        )


def _by_shard(jobs: Sequence[Completed]) -> list[tuple[int, list[int]]]:
    """Return the numbers of the jobs of each shard."""
    shards = [shard_of(job.job_id) for job in jobs]
    numbers = sorted(range(len(jobs)), key=shards.__getitem__)
    return [(shard, list(part)) for shard, part in groupby(numbers, key=shards.__getitem__)]


def _pack(jobs: Iterable[Completed]) -> bytes:
    """Write the columns that complete_many.lua reads."""
    values: list[str | int] = []
    for job in jobs:
        values += (
            job.job_id,
            job.finish,
            job.actual,
            int(job.failed),
            job.prompt_tokens,
            job.cached_tokens,
            job.completion_tokens,
        )
    return _encode(values)


def _why(answer: int | bytes) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else ""
