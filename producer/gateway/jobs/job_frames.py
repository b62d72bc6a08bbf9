"""Frames of a job of `/v1/jobs`: a token each, and how it ended."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.contract.messages.wire_delta import WireDelta
from tokenbus.producer.gateway.jobs.token_steps import TokenSteps
from tokenbus.producer.gateway.wire import sse

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.gateway.jobs.answer_frames import EventSource
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
    from tokenbus.producer.gateway.jobs.token_steps import TokenStep


async def job_frames(
    job: SubmittedJob, events: EventSource, after: int = 0
) -> AsyncGenerator[bytes, None]:
    """Yield the frames of a job after a cursor, `event: end` last.

    Raises: ProducerError where it cannot be read on.
    """
    steps = TokenSteps(job.client, job.job_id, job.tenant)
    async for event in events:
        if event.finish is not None:
            if event.to + 1 > after:
                yield _end_frame(job.job_id, event)
            return
        frames = [
            sse.json_frame(_token_body(job.job_id, step), cursor=step.cursor, event="delta")
            for step in await steps.of(event)
            if step.cursor > after
        ]
        if frames:
            yield b"".join(frames)


def position_frame(job_id: str, jobs_ahead: int) -> bytes:
    """Return the frame that tells a place in the queue; nothing was generated yet."""
    body = {"job": job_id, "jobs_ahead": jobs_ahead}
    return sse.json_frame(body, cursor=0, event="position")


def _token_body(job_id: str, step: TokenStep) -> dict[str, Any]:
    body: dict[str, Any] = {
        "job": job_id,
        "cursor": step.cursor,
        "choice": step.choice,
        "token_id": step.token_id,
        "text": step.text,
        "delta": WireDelta.of(step.delta).dump(),
    }
    if step.entry is not None:
        body["logprobs"] = step.entry
    return body


def _end_frame(job_id: str, event: Event) -> bytes:
    assert event.finish is not None
    body: dict[str, Any] = {
        "job": job_id,
        "cursor": event.to + 1,
        "finish": json.loads(event.finish.dump()),
    }
    held_back = [[choice, WireDelta.of(delta).dump()] for choice, delta in event.deltas]
    if held_back:
        body["deltas"] = held_back
    return sse.data_frame(to_json(body), cursor=event.to + 1, event="end")
