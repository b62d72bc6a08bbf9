"""Mutated requests by the thousand, through every door: each is answered, nobody is hurt.

`CHAOS_BODIES` says how many.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import zlib
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from mutants.bodies import Mutant, mutants
from patience import PATIENCE_S, until_within
from rides.scale import IS_SHORT, SEED, number_of
from workers.null_workers import command, follow, worker

from tokenbus.engine.errors import RequestFailed, RequestRejected, SequenceTooLong
from tokenbus.engine.llm import LLM
from tokenbus.engine.types import FinishReason, GrammarKind, GrammarSpec, SamplingParams
from tokenbus.producer.client.async_client import Job
from tokenbus.producer.contract.result import JobCancelled, JobExpired, JobFailed
from tokenbus.producer.errors import IdempotencyConflict, QueueFull, RequestInvalid
from tokenbus.producer.scripts import Budget
from tokenbus.worker.pool import pull_loop

if TYPE_CHECKING:
    from models.tiny_model import TinyModel

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.worker.supervisor import Worker

NUM_BODIES = number_of("BODIES", 200, 10_000)
BATCH = 100
# What the real engine answers within at any time, once nothing else runs.
LIMIT_S = 5.0
# A job too large for every worker waits half a minute for a larger one, in a short row less: the
# next batch comes meanwhile, and its end is looked for later.
TOO_LARGE_AFTER_MS = 2_000 if IS_SHORT else 30_000
GRACE_S = 1.0
GOOD = "good evening"
NUM_GOOD_TOKENS = 8
# Growth over the first batch, which loads what is loaded once: compilers, tables, caches.
MAX_GROWTH_BYTES = 400_000_000
MAX_SERVER_BYTES = 200_000_000
SETTINGS: dict[str, Any] = {
    "engine": "paged",
    "dtype": "float32",
    "device": "cpu",
    "num_pages": 256,
    "num_threads": 1,
    "max_num_seqs": 32,
}


async def _send(client: AsyncClient, mutant: Mutant) -> tuple[Job | str | None, str]:
    """Send a mutant through the client's door or, every second one, into the raw inbox.

    Returns: its job, or the secret under which the inbox tells it, None if the door refused the
        mutant; and what was said.
    """
    if mutant.number % 2:
        scripts, secret = client.scripts, secrets.token_hex(16)
        inbox = scripts.keys.of("inbox")
        await scripts.redis.xadd(inbox, {"job": mutant.raw, "reply": secret})
        return secret, "inbox"
    try:
        return await client.submit(**mutant.fields), "door: accepted"
    except (RequestInvalid, IdempotencyConflict, QueueFull) as error:
        return None, f"door: {type(error).__name__}"


async def _told(client: AsyncClient, secret: str) -> dict[str, str]:
    """Return the job that a raw entry became, and its tenant."""
    replies = client.scripts.keys.of("replies", secret)
    _, told = await command(client.scripts, "BLPOP", replies, PATIENCE_S)
    told = json.loads(told)
    return {"job_id": told["job"], "tenant": told["tenant"]}


async def _end_of(client: AsyncClient, mutant: Mutant, sent: Job | str) -> str:
    """Return how a job ended; one that may ask to wait for a month is cancelled."""
    told: dict[str, Any] = {"job_id": sent} if isinstance(sent, Job) else await _told(client, sent)
    try:
        if "not_before_s" in mutant.fields:
            await client.cancel(**told)
        result = await client.result(**told, timeout_s=PATIENCE_S)
    except JobFailed as error:
        return f"failed: {error.code}"
    except (JobCancelled, JobExpired) as error:
        return type(error).__name__
    return result.finish.reason


async def _outcome(client: AsyncClient, mutant: Mutant, answer: Job | str | None, said: str) -> str:
    """Return what was said to a mutant, and how its job ended where it became one."""
    return said if answer is None else f"{said} {await _end_of(client, mutant, answer)}"


async def _good(client: AsyncClient, expected: list[int]) -> None:
    """A good job ends as it always did, and soon."""
    job = await client.submit(GOOD, max_tokens=NUM_GOOD_TOKENS, temperature=0.0, priority=0)
    reading = asyncio.create_task(follow(client, job.job_id))
    await until_within(reading.done, LIMIT_S)
    assert (await reading).ids[0] == expected


def _memory(running: Worker) -> int:
    """Return the bytes that worker and engine hold."""
    assert running.engine_pid is not None
    return sum(psutil.Process(pid).memory_info().rss for pid in (None, running.engine_pid))


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Return the seed of the case's mutants; CHAOS_SEED, printed, repeats it."""
    print(f"CHAOS_SEED={SEED}")
    return SEED ^ zlib.crc32(request.node.name.encode())


async def test_mutated_bodies_hurt_nobody(
    client: AsyncClient,
    redis_url: str,
    pool: str,
    model: TinyModel,
    seed: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No engine dies, nothing hangs, a good job ends as before, and memory stays where it was."""
    budget = partial(Budget, too_large_after_ms=TOO_LARGE_AFTER_MS)
    monkeypatch.setattr(pull_loop, "Budget", budget)
    expected = model.greedy(GOOD, NUM_GOOD_TOKENS)
    outcomes: Counter[str] = Counter()
    memory = 0
    settings = {"model": str(model.folder), **SETTINGS}
    limit_s = PATIENCE_S * (1 + NUM_BODIES / 500)
    async with worker(pool, redis_url, limit_s, **settings) as running:
        engine_pid = running.engine_pid
        await _good(client, expected)
        batch: list[Mutant] = []
        waiting: set[asyncio.Task[str]] = set()
        for mutant in mutants(seed, NUM_BODIES):
            batch.append(mutant)
            if len(batch) < BATCH:
                continue
            sent = [(each, *await _send(client, each)) for each in batch]
            inbox = client.scripts.keys.of("inbox")
            async with asyncio.timeout(PATIENCE_S):
                while await client.scripts.redis.xlen(inbox):  # noqa: ASYNC110 - the server's
                    await asyncio.sleep(0.01)
            waiting |= {asyncio.create_task(_outcome(client, *each)) for each in sent}
            ended, waiting = await asyncio.wait(waiting, timeout=GRACE_S)
            outcomes.update(task.result() for task in ended)
            batch.clear()
            assert running.engine_pid == engine_pid, "the engine died"
            await _good(client, expected)
            memory = memory or _memory(running)
            if (mutant.number + 1) % 1000 == 0:
                print(f"{mutant.number + 1} bodies sent, {len(waiting)} jobs wait")
        outcomes.update(await asyncio.gather(*waiting))
        assert _memory(running) - memory < MAX_GROWTH_BYTES
        usage = await client.scripts.redis.info("memory")
        assert usage["used_memory"] < MAX_SERVER_BYTES
    print(f"{NUM_BODIES} bodies: {json.dumps(dict(outcomes.most_common()), indent=1)}")
    assert outcomes["door: accepted length"] > NUM_BODIES // 1000
    assert outcomes["failed: internal"] == 0


def _offline(mutant: Mutant) -> tuple[Any, SamplingParams]:
    """Return prompt and parameters of a mutant, as a caller of `LLM` may give them."""
    names = SamplingParams.__dataclass_fields__
    fields: dict[str, Any] = {k: v for k, v in mutant.fields.items() if k in names}
    grammar = fields.get("grammar")
    if isinstance(grammar, dict) and mutant.number % 8:
        kind, source = grammar.get("kind"), grammar.get("source")
        kind = GrammarKind(kind) if kind in list(GrammarKind) else kind
        fields["grammar"] = GrammarSpec(kind, source)  # type: ignore[arg-type]
    given = (mutant.fields.get(name) for name in ("prompt", "token_ids", "messages"))
    return next((item for item in given if item is not None), "x"), SamplingParams(**fields)


def test_mutated_requests_of_a_batch_hurt_nobody(model: TinyModel, seed: int) -> None:
    """Offline each gets an answer or an error of its own, and the good ones beside it are right."""
    expected = model.greedy(GOOD, NUM_GOOD_TOKENS)
    settings = {name: value for name, value in SETTINGS.items() if name != "engine"}
    llm = LLM(model.folder, **settings)
    good = (GOOD, SamplingParams(max_tokens=NUM_GOOD_TOKENS, temperature=0.0))
    outcomes: Counter[str] = Counter()
    drawn = [_offline(mutant) for mutant in mutants(seed, NUM_BODIES, sampling_only=True)]
    for start in range(0, NUM_BODIES, BATCH):
        batch = [good, *drawn[start : start + BATCH], good]
        outputs = llm.generate([b[0] for b in batch], [b[1] for b in batch], progress=False)
        assert outputs[0].token_ids == outputs[-1].token_ids == expected
        for output in outputs[1:-1]:
            if output.error is None:
                assert all(
                    choice.finish_reason in (FinishReason.STOP, FinishReason.LENGTH)
                    for choice in output.choices
                )
            else:
                assert isinstance(output.error, (RequestRejected, SequenceTooLong, RequestFailed))
            outcomes["answered" if output.error is None else type(output.error).__name__] += 1
        llm.engine.check_integrity()
        stats = llm.stats()
        assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    llm.close()
    print(f"{NUM_BODIES} requests: {json.dumps(dict(outcomes.most_common()), indent=1)}")
    assert outcomes["answered"] > NUM_BODIES // 100
