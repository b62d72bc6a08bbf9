"""A FastAPI backend that relays answers as server-sent events, resumable after any of them.

    pip install "tokenbus" fastapi uvicorn
    TOKENBUS_REDIS_URL=embedded:///tmp/bus python examples/fastapi_sse.py

    curl -s localhost:8000/jobs --json '{"prompt": "Two sentences about rain:"}'
    curl -N localhost:8000/jobs/<job_id>/events

All users are of one tenant here. Where they are not, the backend takes the tenant from its own
authentication, never from what the browser sends, and passes it as `tenant=` to `submit` and to
`stream`: another tenant's job is then as unknown as none.

A question may be messages and tools in place of a prompt. Then each event has a `delta`, spelled as
OpenAI's stream does: content, reasoning and calls, told apart as they grow.

The `id:` of an event is the stream's cursor. A browser's EventSource that lost its connection sends
the last one as Last-Event-ID and gets the rest, also from another instance of this backend.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator  # noqa: TC003 -- FastAPI reads the annotations
from contextlib import aclosing, asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from tokenbus.producer import AsyncClient
from tokenbus.producer.errors import CursorInvalid, JobUnknown, QueueFull, RequestInvalid


class Question(BaseModel):
    """What the browser sends: a prompt, or messages and perhaps tools, as chat APIs spell them."""

    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    max_tokens: int = 64


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Open one client per process, after any fork; it is shared by all requests."""
    async with await AsyncClient.connect() as client:
        app.state.bus = client
        yield


app = FastAPI(lifespan=lifespan)


@app.post("/jobs", status_code=202)
async def submit(question: Question) -> dict[str, str]:
    """Queue a question, or say when to come back."""
    try:
        job = await app.state.bus.submit(**question.model_dump(exclude_none=True))
    except RequestInvalid as invalid:
        raise HTTPException(422, str(invalid)) from None
    except QueueFull as full:
        retry = {"Retry-After": str(round(full.retry_after_s) or 1)}
        raise HTTPException(429, str(full), retry) from None
    return {"job_id": job.job_id}


@app.get("/jobs/{job_id}/events")
async def events(job_id: str, last_event_id: Annotated[int, Header(ge=0)] = 0) -> StreamingResponse:
    """Relay the job's events after the last one that the browser saw."""
    stream = app.state.bus.stream(job_id, last_event_id)
    try:
        first = await anext(stream)
    except JobUnknown as unknown:
        raise HTTPException(404, str(unknown)) from None
    except CursorInvalid as invalid:
        raise HTTPException(400, str(invalid)) from None

    async def relay() -> AsyncIterator[str]:
        # Closed with the response: a browser that has left holds no subscription.
        async with aclosing(stream):
            event = first
            while event is not None:
                kind = "delta" if event.finish is None else "end"
                body = json.dumps(event.dump())
                yield f"id: {event.cursor}\nevent: {kind}\ndata: {body}\n\n"
                event = await anext(stream, None)

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(relay(), media_type="text/event-stream", headers=headers)


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")), log_level="warning")
