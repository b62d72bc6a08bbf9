"""What a client keeps of a job: the result that its worker stores, or nothing at all."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.client.reading.kept_job import KeptJob
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.events import Event, Failure, Finish, ToolCall
from tokenbus.producer.contract.result import JobResult, build_result
from tokenbus.worker.publishing.text.transcript import Transcript

ADDRESS = JobAddress("s0-job", "shop")


def run(seed: int) -> tuple[list[Event], JobResult]:
    """Return the events of a made-up job and the result that its worker stores."""
    chance = random.Random(seed)
    num_choices = chance.randint(1, 4)
    has_logprobs = chance.random() < 0.5
    transcript = Transcript(ADDRESS.text, num_choices)
    events: list[Event] = []
    epoch = 1
    for _ in range(chance.randint(0, 12)):
        count = chance.randint(1, 3)
        ids = [chance.randrange(1000) for _ in range(count)]
        texts = [chance.choice(["", "a", "é ", "\n日本", '"x"']) for _ in range(count)]
        extra = [[-0.5, 1, [[7, -1.25]]]] * count if has_logprobs and chance.random() < 0.8 else ()
        transcript.append(chance.randrange(num_choices), ids, texts, extra)
        epoch += chance.random() < 0.2
        while (last := events[-1].to if events else 0) < transcript.last:
            choice, start, text, *columns = transcript.slice_after(last, chance.randint(1, 4))
            ids_, ends, logprobs = (tuple(column) for column in columns)
            to = start + len(ids_) - 1
            events.append(
                Event(
                    *(ADDRESS.job_id, epoch, choice, start, to, text, ids_, ends, logprobs),
                    tenant=ADDRESS.tenant,
                )
            )
    reasons = tuple(chance.choice(["stop", "length"]) for _ in range(num_choices))
    stops = tuple(chance.choice([None, 5, "x"]) for _ in range(num_choices))
    call = ToolCall(0, "call", "name", "{}", 0)
    finish = Finish(reasons[0], Usage(3, 1, transcript.last), None, reasons, (call,), stops)
    result = transcript.result(epoch, finish)
    last = transcript.last
    named = (ADDRESS.job_id, epoch, 0, last + 1, last)
    events.append(Event(*named, finish=finish, tenant=ADDRESS.tenant))
    return events, JobResult.parse(result.dump())


def heard(events: list[Event], **options: Any) -> KeptJob:
    """Keep events as they come from a channel."""
    job = KeptJob(ADDRESS, 0, 2, **({"max_tokens": 1000} | options))
    for event in events:
        job.put(parse_message(json.dumps(event.dump())))
    return job


@pytest.mark.parametrize("seed", range(40))
def test_result_of_the_events_is_the_stored_one(seed: int) -> None:
    """Choices, logprobs, runs, stops and calls: all that a worker stores, whoever it was."""
    events, stored = run(seed)
    assert heard(events).result() == stored


def test_result_of_a_job_that_failed_is_the_stored_one() -> None:
    """Who ends a job without an owner tells no choices; the result has one all the same."""
    finish = Finish("failed", Usage(3), Failure("poison", "it kills", None))
    stored = build_result(ADDRESS.text, 4, [], finish)
    end = Event(ADDRESS.job_id, 4, 0, 1, 0, finish=finish, tenant=ADDRESS.tenant)
    assert heard([end]).result() == JobResult.parse(stored.dump())


@pytest.mark.parametrize("seed", range(10))
def test_gap_leaves_nothing_of_which_a_result_could_be_made(seed: int) -> None:
    """One event that is missing, or too many tokens: the stored result has to be read."""
    events, stored = run(seed)
    for number in range(len(events) - 1):
        missing = heard([*events[:number], *events[number + 1 :]])
        assert missing.result() is None
        assert missing.has_hole
        assert missing.end is not None
    assert heard(events[:-1]).result() is None
    assert heard(events, is_told_whole=False).result() is None
    if stored.last > 1:
        assert heard(events, max_tokens=stored.last - 1).result() is None
    twice = [event for event in events[:-1] for _ in range(2)]
    assert heard([*twice, events[-1]]).result() == stored


def test_event_that_overlaps_brings_what_is_new() -> None:
    """A new owner may begin an entry before what was heard ends."""
    events, stored = run(3)
    tokens = [event for event in events if event.finish is None and len(event.ids) > 1]
    longer = tokens[0]
    at = events.index(longer)
    cut = replace_event(longer)
    assert heard([*events[:at], cut, *events[at:]]).result() == stored


def replace_event(event: Event) -> Event:
    """Return the first token of an event."""
    wire = event.dump()
    start = wire["ends"][-1] - len(wire["text"])
    first = wire | {"to": wire["from"], "ids": wire["ids"][:1], "ends": wire["ends"][:1]}
    first["text"] = wire["text"][: wire["ends"][0] - start]
    if "logprobs" in wire:
        first["logprobs"] = wire["logprobs"][:1]
    return parse_message(json.dumps(first))
