"""Logprobs in a log: beside their ids from any index, also behind those of an earlier worker."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import msgspec
from servers.fixtures import pool, redis_url, server
from workers.publisher_bench import JOB_ID, RULES, running_publisher, step_of_job, take_over

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import FinishReason, TokenLogprobs
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.scripts.log import Append, Takeover
from tokenbus.worker.messages.publishing import Committed, OpenGate, Taken

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Event
    from tokenbus.worker.messages.engine import StepRecord

__all__ = ["pool", "redis_url", "server"]

TOKENIZER = build_null_tokenizer()
TEXT = "always the same sentence"
IDS = [int(token_id) for token_id in TOKENIZER.encode(TEXT)]
# Tokens of an earlier owner, and how many entries it wrote beside them, leaving out forced ones.
EARLIER = [(1, 1), (3, 1), (2, 0)]
NUM_EARLIER = sum(count for count, _ in EARLIER)


def scored(ids: list[int], *, end: FinishReason | None = None) -> StepRecord:
    """Return a step that brings ids with their entries, every other one forced."""
    entries = tuple(
        TokenLogprobs(each, -float(each), idx + 1, ((each, -1.5),), forced=idx % 2 == 1)
        for idx, each in enumerate(ids)
    )
    return msgspec.structs.replace(step_of_job(*ids, end=end), logprobs=[(0, entries)])


def wire(token_id: int, idx: int) -> list[Any]:
    """Return what readers see of an entry of `scored`."""
    entry = [-float(token_id), idx + 1, [[token_id, -1.5]]]
    return [*entry, True] if idx % 2 else entry


def column(events: list[Event], cursor: int = 0) -> tuple[list[int], list[Any]]:
    """Return ids and entries after a cursor, each event with an entry per id or none at all."""
    ids: list[int] = []
    entries: list[Any] = []
    for event in events:
        if event.finish is None and event.to > cursor:
            cut = event.after(cursor)
            assert len(cut.logprobs) in {0, len(cut.ids)}
            ids += cut.ids
            entries += cut.logprobs or [None] * len(cut.ids)
    return ids, entries


async def test_entries_of_an_earlier_worker_shift_nothing(redis_url: str, pool: str) -> None:
    """What it left out is null, its own and all later ones stand beside their tokens."""
    async with running_publisher(redis_url, pool) as bench:
        log = bench.scripts.log
        await log.takeover([Takeover(JOB_ID, 1, "earlier")])
        start = 1
        for count, num_entries in EARLIER:
            ids = IDS[start - 1 : start - 1 + count]
            end = len(TOKENIZER.decode(IDS[: start - 1]))
            ends = [end + idx + 1 for idx in range(count)]
            text = TEXT[end : ends[-1]]
            written = json.dumps([[-2.5, 1, []]] * num_entries) if num_entries else ""
            to = start + count - 1
            await log.append([Append(JOB_ID, 1, 0, start, to, text, ids, ends, written)])
            start = to + 1
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        order = msgspec.structs.replace(take_over(), epoch=2)
        bench.publisher.obey(order)
        taken = await bench.first(Taken)
        assert taken.last == NUM_EARLIER
        later = IDS[NUM_EARLIER:]
        bench.publisher.obey(scored(later[:4]))
        bench.publisher.obey(scored(later[4:], end=FinishReason.LENGTH))
        await bench.first(Committed)
        events = await log.events(JOB_ID) or []
        kept = JobResult.parse(await log.result(JOB_ID) or b"")
    fresh = [wire(each, idx) for part in (later[:4], later[4:]) for idx, each in enumerate(part)]
    wanted = [[-2.5, 1, []], *[None] * (NUM_EARLIER - 1), *fresh]
    assert kept.choices[0].ids == tuple(IDS)
    assert list(kept.choices[0].logprobs) == wanted
    for cursor in range(len(IDS)):
        assert column(events, cursor) == (IDS[cursor:], wanted[cursor:])
        assert column(list(kept.events(cursor)), cursor) == (IDS[cursor:], wanted[cursor:])


async def test_tokens_behind_a_stop_string_take_their_entries_along(
    redis_url: str, pool: str
) -> None:
    """A step that brings a whole forced run is cut where its text is."""
    rules = msgspec.structs.replace(RULES, stop=("same",))
    async with running_publisher(redis_url, pool) as bench:
        bench.publisher.obey(OpenGate(0, time.monotonic()))
        bench.publisher.obey(msgspec.structs.replace(take_over(), rules=rules))
        await bench.first(Taken)
        bench.publisher.obey(scored(IDS))
        await bench.first(Committed)
        events = await bench.scripts.log.events(JOB_ID) or []
        kept = JobResult.parse(await bench.scripts.log.result(JOB_ID) or b"")
    ids, entries = column(events)
    assert kept.text == TEXT[: TEXT.index("same")]
    assert ids == list(kept.choices[0].ids)
    assert len(ids) < len(IDS)
    assert entries == list(kept.choices[0].logprobs)
    assert entries == [wire(each, idx) for idx, each in enumerate(ids)]
