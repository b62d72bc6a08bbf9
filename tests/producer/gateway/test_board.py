"""The board's data: who may see what, what a search finds, and what operators do."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from gateways.doors import Door, Told, door
from patience import PATIENCE_S
from workers.null_workers import worker
from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.gateway.access.api_keys import ApiKeys
from tokenbus.producer.gateway.board.board_jobs import STATES, JobSearch
from tokenbus.producer.gateway.board.board_page import page_files
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.server.embedded import EmbeddedServer

SECRET = "the word that nobody may read"  # noqa: S105 - a prompt


@asynccontextmanager
async def keyed_door(
    scripts: Scripts, redis_url: str, pool: str
) -> AsyncIterator[tuple[Door, dict[str, str]]]:
    """Run a gateway with a key for each role, `none` without one, `other` for another pool."""
    keys = ApiKeys(scripts.redis)
    made = {}
    for name, roles in (
        ("none", ()),
        ("viewer", ("viewer",)),
        ("reader", ("reader",)),
        ("operator", ("operator",)),
    ):
        made[name], _ = await keys.create(tenant="shop", roles=roles)
    made["other"], _ = await keys.create(roles=("viewer", "operator"), pools=("elsewhere",))
    async with door(redis_url, pool, gateway_auth="keys") as running:
        yield running, made


async def act(running: Door, pool: str, name: str, target: str = "", key: str = "") -> Any:
    """Ask for an act."""
    body = {"act": name, "target": target, "tenant": "acme"}
    return await running.post(f"/ui/api/pools/{pool}/acts", body, key)


async def held_job(scripts: Scripts, job_id: str = "job") -> StubWorker:
    """Let a worker hold a job of `acme` that has a secret, and log some of its answer."""
    worker, address = StubWorker(scripts), f"{job_id}@acme"
    await worker.reconcile()
    request = json.dumps({"v": 2, "prompt": SECRET})
    await submit(scripts, a_job(address, request=request))
    await worker.pull()
    await worker.start(address, 1)
    await worker.append(address, 1, 1, 3)
    return worker


async def test_role_decides_what_a_key_sees_and_does(
    scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A key without a role is told nothing, a viewer no text, and only an operator acts."""
    await held_job(scripts)
    async with keyed_door(scripts, redis_url, pool) as (running, keys):
        at = f"/ui/api/pools/{pool}"
        for path in ("/ui/api/session", at, f"{at}/jobs", f"{at}/jobs/job?tenant=acme"):
            assert (await running.get(path)).status == 401, path
            assert (await running.get(path, keys["none"])).error["code"] == "role_needed", path
            assert (await running.get(path, keys["viewer"])).status == 200, path
        for name in ("viewer", "operator"):
            told = await running.get(f"{at}/jobs/job?tenant=acme", keys[name])
            assert told.json["texts"] is None
            assert SECRET not in told.text
            assert "001" not in told.text
        told = await running.get(f"{at}/jobs/job?tenant=acme", keys["reader"])
        assert SECRET in told.json["texts"]["request"]
        assert told.json["texts"]["answers"] == ["001 002 003 "]
        assert told.json["num_tokens"] == 3
        for name in ("none", "viewer", "reader"):
            assert (await act(running, pool, "pause", key=keys[name])).status == 403, name
        assert await raw(scripts).get(scripts.keys.of("paused")) is None
        assert (await act(running, pool, "pause", key=keys["operator"])).status == 200
        assert await raw(scripts).get(scripts.keys.of("paused")) is not None
        session = (await running.get("/ui/api/session", keys["reader"])).json
        assert session["roles"] == ["viewer", "reader"]


async def test_keys_of_the_process_have_the_roles_that_it_is_given(
    redis_url: str, pool: str
) -> None:
    """A key beside which no role stands is told nothing; one with a role sees what that may."""
    key = "key-of-the-process"
    async with door(redis_url, pool, gateway_api_keys=(key,)) as running:
        assert (await running.get("/ui/api/session", key)).error["code"] == "role_needed"
    given = {"gateway_api_keys": (key,), "gateway_api_key_roles": ("viewer",)}
    async with door(redis_url, pool, **given) as running:
        assert (await running.get("/ui/api/session", key)).json["roles"] == ["viewer"]
        assert (await act(running, pool, "pause", key=key)).status == 403


async def test_pools_of_another_key_are_not_there(
    scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A key that is made for some pools sees and pauses no other."""
    async with keyed_door(scripts, redis_url, pool) as (running, keys):
        for path in ("", "/jobs", "/letters", "/jobs/job"):
            told = await running.get(f"/ui/api/pools/{pool}{path}", keys["other"])
            assert told.status == 404, path
        assert (await act(running, pool, "pause", key=keys["other"])).status == 404
        session = (await running.get("/ui/api/session", keys["other"])).json
        assert pool not in [each["name"] for each in session["pools"]]
        unknown = await running.get("/ui/api/pools/nobody", keys["viewer"])
        assert unknown.status == 404


async def test_pages_of_elsewhere_are_told_nothing_where_keys_are_off(
    redis_url: str, pool: str
) -> None:
    """A browser that a page of another origin or name leads here gets no figures."""
    async with door(redis_url, pool) as running:
        at = f"/ui/api/pools/{pool}"
        assert (await running.get(at)).status == 200
        host = running.url.removeprefix("http://")
        assert (await running.get(at, Origin=running.url)).status == 200
        for headers in (
            {"Host": "rebound.example"},
            {"Host": f"rebound.example:{host.rpartition(':')[2]}"},
            {"Origin": "https://rebound.example"},
            {"Origin": "null"},
        ):
            told = await running.get(at, **headers)
            assert (told.status, told.error["code"]) == (403, "not_local"), headers
            body = json.dumps({"act": "pause"}).encode()
            acted = await running.ask("POST", f"{at}/acts", body, **headers)
            assert acted.status == 403, headers


async def test_figures_tell_what_needs_a_look(scripts: Scripts, redis_url: str, pool: str) -> None:
    """Lost and drained workers, a pause and what waits are told, each with what to do."""
    worker = await held_job(scripts)
    lost = await held_job(scripts, "orphan")
    await lost.die()
    await submit(scripts, a_job("waiting@zen", tenant="zen", priority=0))
    async with door(redis_url, pool) as running:
        for name, target in (("pause", ""), ("drain", worker.name)):
            assert (await act(running, pool, name, target)).status == 200
        told = (await running.get(f"/ui/api/pools/{pool}")).json
        codes = {each["code"]: each for each in told["conditions"]}
        assert {"worker_lost", "paused", "drained"} <= codes.keys()
        assert told["conditions"][0]["level"] == "bad"
        assert lost.name in codes["worker_lost"]["told"]
        assert all(each["cure"] for each in codes.values())
        assert [(each["name"], each["held_jobs"]) for each in told["lost"]] == [(lost.name, 1)]
        assert told["waiting_jobs"] == 1
        [lane] = [each for each in told["lanes"] if each["tenant"] == "zen"]
        assert (lane["priority"], lane["waiting_jobs"]) == (0, 1)
        assert (await act(running, pool, "drain", "nobody")).status == 404
        for name, target in (("resume", ""), ("undrain", worker.name)):
            assert (await act(running, pool, name, target)).status == 200
        assert (await act(running, pool, "explode")).status == 400


async def test_search_finds_jobs_by_words(scripts: Scripts, redis_url: str, pool: str) -> None:
    """Parts of ids, tenant, priority, worker and state narrow the list."""
    worker = await held_job(scripts, "held-1")
    await submit(
        scripts,
        *(
            a_job(f"wait-{number}@zen/0{number}", tenant=f"zen/0{number}", priority=number % 3)
            for number in range(6)
        ),
    )
    async with door(redis_url, pool) as running:

        async def found(query: str, **params: Any) -> tuple[list[str], bool]:
            asked = "&".join(f"{name}={value}" for name, value in {"q": query, **params}.items())
            told = (await running.get(f"/ui/api/pools/{pool}/jobs?{asked}")).json
            return sorted(job["id"] for job in told["jobs"]), told["is_whole"]

        assert await found("held") == (["held-1"], True)
        assert await found("HELD-1%20tenant:acme") == (["held-1"], True)
        assert await found("tenant:zen%20priority:1") == (["wait-1", "wait-4"], True)
        assert await found(f"worker:{worker.name}") == (["held-1"], True)
        assert (await found("", state="waiting"))[0] == [f"wait-{n}" for n in range(6)]
        assert await found("state:ended") == ([], True)
        ids, is_whole = await found("", limit=3)
        assert (len(ids), is_whole) == (3, False)
        assert (await running.get(f"/ui/api/pools/{pool}/jobs?q=state:odd")).status == 400


async def test_job_that_ended_has_its_whole_timeline(
    private_server: EmbeddedServer, module_pool: str
) -> None:
    """Queued, taken, admitted, first token and end are there, in order."""
    url, pool = private_server.url, module_pool
    async with worker(pool, url, lease_ttl_s=60), door(url, pool) as running:
        async with await AsyncClient.connect(url, pool) as client:
            job = await client.submit("Where is my lamp?", max_tokens=5, tenant="acme")
            await client.result(job)
        told = (await ended_story(running, pool, job.job_id)).json
        assert [stamp["kind"] for stamp in told["stamps"]] == ["p", "a", "f", "e"]
        times = [told["created_ms"], *(stamp["at_ms"] for stamp in told["stamps"])]
        assert times == sorted(times)
        assert told["ended_ms"] == times[-1]
        assert (told["state"], told["finish"]["output_tokens"]) == ("ended", 5)
        assert told["texts"]["answers"][0]
        rows = (await running.get(f"/ui/api/pools/{pool}/jobs?q=reason:length")).json["jobs"]
        assert [row["id"] for row in rows] == [job.job_id]
        assert rows[0]["ttft_ms"] >= rows[0]["queue_ms"] >= 0
        figures = (await running.get(f"/ui/api/pools/{pool}")).json
        assert figures["ended"]["reasons"] == {"length": 1}
        assert figures["ended"]["latencies"].keys() == {"queue", "ttft", "itl", "e2e"}
        last = figures["samples"][-1][0]
        later = (await running.get(f"/ui/api/pools/{pool}?since_ms={last}")).json["samples"]
        assert all(sample[0] > last for sample in later)


async def ended_story(running: Door, pool: str, job_id: str) -> Told:
    """Ask until the board has looked at the pool since the job's worker completed it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            told = await running.get(f"/ui/api/pools/{pool}/jobs/{job_id}?tenant=acme")
            if told.json["state"] == "ended" and told.json["ended_ms"]:
                return told
            await asyncio.sleep(0.02)


async def test_letters_are_retried_and_deleted(scripts: Scripts, redis_url: str, pool: str) -> None:
    """A letter goes with its retry, which is a job; a viewer sees no request."""
    worker = await held_job(scripts)
    error = {"code": "internal", "field": None, "message": SECRET}
    finish = json.dumps({"reason": "failed", "usage": {}, "choices": [], "error": error})
    await raw(scripts).xadd(
        scripts.keys.of("dead"),
        {
            "job": "job@acme",
            "tenant": "acme",
            "finish": finish,
            "body": json.dumps({"v": 2, "prompt": SECRET, "tenant": "acme", "max_tokens": 2}),
            "at": 1_700_000_000_000,
        },
    )
    async with keyed_door(scripts, redis_url, pool) as (running, keys):
        path = f"/ui/api/pools/{pool}/letters"
        told = await running.get(path, keys["viewer"])
        [letter] = told.json["letters"]
        assert (letter["code"], letter["can_retry"]) == ("internal", True)
        assert SECRET not in told.text
        read = (await running.get(path, keys["reader"])).json["letters"][0]
        assert SECRET in read["request"]
        assert read["message"] == SECRET
        done = await act(running, pool, "retry", letter["entry"], keys["operator"])
        assert done.json["id"].startswith("retry~")
        assert (await running.get(path, keys["viewer"])).json["letters"] == []
        again = await act(running, pool, "retry", letter["entry"], keys["operator"])
        assert (again.status, again.error["code"]) == (409, "cannot_retry")
        gone = await act(running, pool, "delete", letter["entry"], keys["operator"])
        assert gone.json == {"deleted": 0}
        cancelled = await act(running, pool, "cancel", done.json["id"], keys["operator"])
        assert cancelled.json == {"cancelled": True}
    del worker


async def test_page_loads_nothing_from_elsewhere(redis_url: str, pool: str) -> None:
    """The files go out with a policy that lets them load and ask this server alone."""
    async with door(redis_url, pool) as running:
        told = await running.get("/ui/")
        assert told.status == 200
        policy = told.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        for name in page_files():
            file = await running.get(f"/ui/{name}")
            assert file.headers["X-Content-Type-Options"] == "nosniff"
            outside = file.text.replace("http://www.w3.org/2000/svg", "")
            assert "http://" not in outside, name
            assert "https://" not in outside, name
            assert "innerHTML" not in file.text, name
            again = await running.get(f"/ui/{name}", **{"If-None-Match": file.headers["ETag"]})
            assert again.status == 304
            assert file.headers["Content-Encoding"] == "gzip"
            plain = await running.get(f"/ui/{name}", **{"Accept-Encoding": "identity"})
            assert "Content-Encoding" not in plain.headers
            assert plain.text == file.text
        assert (await running.get("/ui/settings.py")).status == 404
        assert (await running.get("/ui/..%2Fboard_page.py")).status == 404


async def test_page_is_painted_before_any_other_file_is_there(redis_url: str, pool: str) -> None:
    """Its style lies in it, under the policy that names it; scripts wait until it is read."""
    async with door(redis_url, pool) as running:
        told = await running.get("/ui/")
        [style] = re.findall(r"<style>(.*?)</style>", told.text, re.DOTALL)
        assert style == (await running.get("/ui/board.css")).text
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert f"style-src 'self' 'sha256-{digest}';" in told.headers["Content-Security-Policy"]
        assert 'rel="stylesheet"' not in told.text
        assert re.findall(r"<script[^>]*>", told.text) == ['<script type="module" src="app.js">']


async def test_dashboard_alone_has_no_api(redis_url: str, pool: str) -> None:
    """What `tokenbus dashboard` serves is the board and how it is, and no way to submit."""
    async with door(redis_url, pool, gateway_serves_api=False) as running:
        assert (await running.get("/ui/")).status == 200
        assert (await running.get("/healthz")).status == 200
        assert (await running.get("/ui/api/session")).json["has_api"] is False
        for path in ("/v1/models", "/v1/jobs", "/v1/chat/completions"):
            assert (await running.get(path)).status == 404, path


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", JobSearch()),
        ("abc DEF", JobSearch(parts=("abc", "def"))),
        ("state:held,waiting", JobSearch(states=("held", "waiting"))),
        ("reason:failed tenant:a", JobSearch(states=("ended",), reason="failed", tenant="a")),
        ("tenant: x:y", JobSearch(parts=("tenant:", "x:y"))),
    ],
)
def test_search_is_read_as_it_is_typed(text: str, wanted: JobSearch) -> None:
    """Known names with a value narrow it; all else is part of an id."""
    assert JobSearch.parse(text) == wanted


def test_search_refuses_what_no_job_has() -> None:
    """A state or priority that is none is told, and the states that there are."""
    for text in ("state:asleep", "priority:7"):
        with pytest.raises(ApiError, match=STATES[0] if "state" in text else "priority"):
            JobSearch.parse(text)
