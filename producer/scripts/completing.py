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
    """How long log and result of an ended job stay, in ms, and how many bytes all of them may have.

    Where the result takes the log's place, it stays for the longer of the two. Of a pool's finished
    jobs, and of those of a tenant, the oldest results are dropped past `pool_bytes` and
    `tenant_bytes`; 0 bounds nothing, None leaves it to what the pool's workers say.
    """

    log_ms: int = 120_000
    result_ms: int = 3_600_000
    pool_bytes: int | None = None
    tenant_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """A job whose terminal entry stands in its log, and what that says.

    `finish` is the entry's own text, empty where only the last steps are left. `actual` is what
    the job's tenant is charged in the end. `lived` are moments of it that its owner knows
    (`lived_text` in scripts/timeline.py).
    """

    job_id: str
    finish: str = ""
    actual: int = 0
    failed: bool = False
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    lived: str = ""

    @classmethod
    def of(cls, job_id: str, finish: str, parsed: Finish | None = None, *, lived: str = "") -> Self:
        """Make it of a terminal entry's finish; `parsed` is the same, where it is at hand."""
        parsed = parsed or Finish.parse(finish)
        counts = (
            parsed.usage.prompt_tokens,
            parsed.usage.cached_tokens,
            parsed.usage.completion_tokens,
        )
        prompt, cached, completion = (min(max(0, count), _MAX_TOKENS) for count in counts)
        is_failed = parsed.reason == "failed"
        return cls(
            job_id, finish, prompt + completion, is_failed, prompt, cached, completion, lived
        )


class CompletionScripts:
    """Typed calls that complete jobs. Every method raises what `ScriptRunner.run` raises.

    Where one server has records and logs, `complete` is all of it. On a cluster it is `mark_done`,
    `retain` and `expire_records`, a call for each slot. A result past the bounds whose caller dies
    before the last call goes when its time is over.
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
                batch = [jobs[number] for number in part]
                answers, more = await self._complete(shard, batch, keep, ttl_ms)
                for number, answer in zip(part, answers, strict=True):
                    whys[number] = _why(answer)
                while more:
                    last_steps = [Completed(job.job_id) for job in batch]
                    _, more = await self._complete(shard, last_steps, keep, ttl_ms)
        return whys

    async def _complete(
        self, shard: int, jobs: Sequence[Completed], keep: Retention, ttl_ms: int
    ) -> tuple[list[int | bytes], bool]:
        """Make one call; return its answers, and whether results past the bounds are left."""
        answers, elsewhere, more = await self._runner.run(
            "complete_many",
            (self._keys.prefix, self._keys.log_prefix(shard)),
            at_once=True,
            log_ms=keep.log_ms,
            result_ms=max(keep.log_ms, keep.result_ms),
            record_ms=ttl_ms,
            pool_bytes=_bound(keep.pool_bytes),
            tenant_bytes=_bound(keep.tenant_bytes),
            shard=shard,
            batch=_pack(jobs),
            told=_lived(jobs),
        )
        await self._drop(elsewhere, ttl_ms)
        return answers, bool(more)

    async def mark_done(self, jobs: Sequence[Completed]) -> list[str]:
        """Take the first step: records `done`, out of what is held, charges corrected (R9).

        Returns: for each job why that could not be done, empty for all others.
        """
        whys: list[str] = []
        for first in range(0, len(jobs), MAX_COMPLETED):
            part = jobs[first : first + MAX_COMPLETED]
            answers, *_ = await self._runner.run(
                "complete_many",
                self._keys.prefix,
                at_once=False,
                log_ms=0,
                result_ms=0,
                record_ms=0,
                pool_bytes="",
                tenant_bytes="",
                shard=0,
                batch=_pack(part),
                told=_lived(part),
            )
            whys += map(_why, answers)
        return whys

    async def retain(self, jobs: Sequence[Completed], keep: Retention) -> list[int]:
        """Let logs and results of completed jobs expire: the second step.

        Returns: the bytes of each result.
        """
        sizes = [0] * len(jobs)
        for shard, numbers in _by_shard(jobs):
            answers = await self._runner.run(
                "retain_many",
                self._keys.log_prefix(shard),
                log_ms=keep.log_ms,
                result_ms=keep.result_ms,
                batch=_encode([jobs[number].job_id for number in numbers]),
            )
            for number, size in zip(numbers, answers, strict=True):
                sizes[number] = int(size)
        return sizes

    async def expire_records(
        self, jobs: Sequence[Completed], sizes: Sequence[int], keep: Retention, ttl_ms: int
    ) -> None:
        """Take completed jobs out of `ending`, and let record and idempotency entry expire.

        `sizes` are the bytes of their results, of which the oldest past the bounds are dropped.
        """
        pairs = [part for job, size in zip(jobs, sizes, strict=True) for part in (job.job_id, size)]
        more = True
        while more:
            dropped, more = await self._runner.run(
                "expire_many",
                self._keys.prefix,
                ttl_ms=ttl_ms,
                pool_bytes=_bound(keep.pool_bytes),
                tenant_bytes=_bound(keep.tenant_bytes),
                batch=_encode(pairs),
            )
            await self._drop(dropped, ttl_ms)

    async def _drop(self, names: Sequence[bytes], ttl_ms: int) -> None:
        """Drop logs and results of jobs whose records, kept for `ttl_ms`, say so already.

        What stands in their places is gone before a record may be (`fresh_ms` in lib/kept.lua).
        """
        jobs = [Completed(name.decode()) for name in names]
        for shard, numbers in _by_shard(jobs):
            await self._runner.run(
                "drop_many",
                self._keys.log_prefix(shard),
                trace_ms=min(15_000, ttl_ms // 240),
                batch=_encode([jobs[number].job_id for number in numbers]),
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


def _lived(jobs: Sequence[Completed]) -> list[bytes]:
    """Return the moments of jobs as one argument, none where no owner tells of any."""
    return [_encode([job.lived for job in jobs])] if any(job.lived for job in jobs) else []


def _bound(num_bytes: int | None) -> int | str:
    return "" if num_bytes is None else num_bytes


def _why(answer: int | bytes) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else ""
