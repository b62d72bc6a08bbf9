"""Mutated requests over HTTP, to every route of a gateway: each is answered soon and as it should.

`CHAOS_REQUESTS` says how many, `CHAOS_TOGETHER` how many at once; `CHAOS_SEED`, printed, repeats
them, and a failure prints the request.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import zlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from gateways.doors import Door, door, frames_of
from gateways.uploads import upload
from mutants.http_bodies import BODIES, HttpMutant, http_mutants
from patience import until_within
from rides.scale import SEED, number_of
from workers.batches import completion_line
from workers.null_workers import expected_text, worker
from yarl import URL

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp
    import pytest

NUM_REQUESTS = number_of("REQUESTS", 300, 20_000)
TOGETHER = number_of("TOGETHER", 8, 32)
# How long an answer may take; the gateway gives up what waits longer.
LIMIT_S, GIVEN_UP_S = 5.0, 2.0
ERROR_FIELDS: dict[str, Any] = {
    "message": str,
    "type": str,
    "param": str | None,
    "code": str | None,
}
GOOD = {"prompt": "hi", "max_tokens": 5, "seed": 1}


def check_error(told: Any) -> None:
    """Check that an error has OpenAI's shape."""
    assert set(told) == {"error"}, told
    assert set(told["error"]) == set(ERROR_FIELDS), told
    for name, kind in ERROR_FIELDS.items():
        assert isinstance(told["error"][name], kind), told


async def answered(running: Door, mutant: HttpMutant) -> str:
    """Send a mutant; return what became of it. A stream is left after a while."""
    url = URL(running.url + mutant.url, encoded=True)
    async with running.http.request(
        mutant.method, url, data=mutant.body, headers=mutant.headers, allow_redirects=False
    ) as response:
        status = response.status
        assert status < 500, await response.text()
        if response.content_type == "text/event-stream":
            return await streamed(response)
        raw = await response.read()
        if status >= 400 and mutant.method != "HEAD":
            check_error(json.loads(raw))
            return f"{status} {json.loads(raw)['error']['code']}"
        return str(status)


async def streamed(response: aiohttp.ClientResponse) -> str:
    """Read a stream as far as it comes soon; its errors have the same shape."""
    try:
        async with asyncio.timeout(GIVEN_UP_S):
            async for frame in frames_of(response):
                if frame.data and frame.data != "[DONE]" and "error" in frame.json:
                    told = frame.json
                    if not isinstance(told.get("error"), dict) or "response" in told:
                        continue
                    check_error({"error": told["error"]})
                    assert told["error"]["type"] != "server_error", told
    except TimeoutError:
        return "stream left"
    return "stream read"


async def answered_together(running: Door, part: list[HttpMutant]) -> list[str]:
    """Send mutants at once; return what became of them. One that is not as it should is shown."""
    asked = {asyncio.create_task(answered(running, mutant)): mutant for mutant in part}
    try:
        await until_within(lambda: all(task.done() for task in asked), LIMIT_S)
    finally:
        for task, mutant in asked.items():
            if not task.done() or task.exception() is not None:
                print(f"{'wrong' if task.done() else 'no answer'}: {mutant}")
            task.cancel()
    return [task.result() for task in asked]


async def known_ids(running: Door, pool: str) -> dict[str, str]:
    """Make one of each thing that has an id."""
    job = (await running.post("/v1/jobs", GOOD | {"not_before_s": 3000})).json
    response = (await running.post("/v1/responses", {"input": "hi", "max_output_tokens": 4})).json
    line = json.dumps(completion_line(1, model=pool)).encode()
    _, file = await upload(running, line)
    asked = {"input_file_id": file["id"], "endpoint": "/v1/completions"}
    batch = (await running.post("/v1/batches", asked | {"completion_window": "24h"})).json
    ids = {"jobs": job, "responses": response, "files": file, "batches": batch}
    return {"models": pool} | {part: told["id"] for part, told in ids.items()}


async def test_mutated_requests_are_answered(
    redis_url: str, pool: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """No status of 500 and above, nothing after five seconds, errors in OpenAI's shape."""
    seed = SEED ^ zlib.crc32(request.node.name.encode())
    print(f"CHAOS_SEED={SEED}")
    given = {
        "files_url": str(tmp_path), "gateway_answer_timeout_s": GIVEN_UP_S, "gateway_grace_s": 0,
        "gateway_body_timeout_s": GIVEN_UP_S,
    }  # fmt: skip
    outcomes: Counter[str] = Counter()
    async with (
        worker(pool, redis_url, lease_ttl_s=60),
        door(redis_url, pool, **given) as running,
    ):
        ids = await known_ids(running, pool)
        drawn = http_mutants(seed, NUM_REQUESTS, ids)
        while part := list(itertools.islice(drawn, TOGETHER)):
            outcomes.update(await answered_together(running, part))
        good = await running.post("/v1/completions", GOOD)
        assert good.json["choices"][0]["text"] == expected_text(1, 5)
        metrics = (await running.get("/metrics")).text
    print(f"{NUM_REQUESTS} requests: {json.dumps(dict(outcomes.most_common()), indent=1)}")
    assert all(f'route="{path}"' in metrics for path in BODIES)
    assert outcomes["200"] + outcomes["stream read"] > NUM_REQUESTS // 10
