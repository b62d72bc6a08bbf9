"""A Django backend in one file that relays answers as server-sent events, resumable after any.

    pip install "tokenbus" django uvicorn
    TOKENBUS_REDIS_URL=embedded:///tmp/bus python examples/django_sse.py

    curl -s localhost:8000/jobs --json '{"prompt": "Two sentences about rain:"}'
    curl -N localhost:8000/jobs/<job_id>/events

All users are of one tenant here; where they are not, the backend passes the tenant of its own
authentication to `submit` and to `stream`. The client belongs to the event loop of the process, so
it is connected by the first request; a view of a WSGI server takes the blocking `Client` instead.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator  # noqa: TC003 - of a signature
from contextlib import aclosing
from typing import Any

import uvicorn
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt

from tokenbus.producer import AsyncClient
from tokenbus.producer.errors import CursorInvalid, JobUnknown, QueueFull, RequestInvalid

settings.configure(
    ALLOWED_HOSTS=["localhost", "127.0.0.1"],
    ROOT_URLCONF=__name__,
    SECRET_KEY=os.environ.get("SECRET_KEY", "for an example"),
)

_FIELDS = ("prompt", "messages", "tools", "max_tokens")
_connecting = asyncio.Lock()
_clients: list[AsyncClient] = []


async def bus() -> AsyncClient:
    """Return the client of this process, connected once."""
    async with _connecting:
        if not _clients:
            _clients.append(await AsyncClient.connect())
    return _clients[0]


@csrf_exempt
async def submit(request: HttpRequest) -> HttpResponse:
    """Queue a question, or say when to come back."""
    try:
        question: dict[str, Any] = json.loads(request.body)
        given = {name: question[name] for name in _FIELDS if name in question}
    except (ValueError, TypeError):
        return JsonResponse({"error": "the body has to be a JSON object"}, status=400)
    try:
        job = await (await bus()).submit(**given)
    except RequestInvalid as invalid:
        return JsonResponse({"error": str(invalid)}, status=422)
    except QueueFull as full:
        retry = {"Retry-After": str(round(full.retry_after_s) or 1)}
        return JsonResponse({"error": str(full)}, status=429, headers=retry)
    return JsonResponse({"job_id": job.job_id}, status=202)


async def events(request: HttpRequest, job_id: str) -> HttpResponse | StreamingHttpResponse:
    """Relay the job's events after the last one that the browser saw."""
    cursor = request.headers.get("Last-Event-ID", "0")
    stream = (await bus()).stream(job_id, int(cursor) if cursor.isdecimal() else 0)
    try:
        first = await anext(stream)
    except JobUnknown as unknown:
        return JsonResponse({"error": str(unknown)}, status=404)
    except CursorInvalid as invalid:
        return JsonResponse({"error": str(invalid)}, status=400)

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
    return StreamingHttpResponse(relay(), content_type="text/event-stream", headers=headers)


urlpatterns = [path("jobs", submit), path("jobs/<job_id>/events", events)]
application = get_asgi_application()

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "8000"))
    uvicorn.run(application, port=port, log_level="warning", lifespan="off")
