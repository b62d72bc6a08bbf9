"""Models over HTTP: names, aliases, fallbacks, and what the door says of itself."""

from __future__ import annotations

import asyncio
import contextlib
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from gateways.doors import door
from patience import PATIENCE_S
from yarl import URL

from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.pools.served_models import pool_tag

if TYPE_CHECKING:
    from gateways.doors import Door

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_names_lead_to_pools(
    null_door: Door, private_server: EmbeddedServer, module_pool: str
) -> None:
    """Aliases and the door's own names are listed and answered; a pool without workers falls back.

    Without a fallback its jobs wait, and a name that leads nowhere is not found.
    """
    assert null_door.gateway is not None
    gone = f"{module_pool}-gone"
    redis: Any = null_door.gateway.redis
    await redis.hset(deployment_keys.pools(), pool_tag(gone), gone)
    settings: dict[str, Any] = {
        "gateway_model_names": ("shop-1", "shop-2"),
        "gateway_aliases": {"gpt-4o": module_pool, "nowhere": "no-such-model"},
        "gateway_fallbacks": {gone: ["nowhere", "gpt-4o"]},
    }
    async with door(private_server.url, module_pool, **settings) as running:
        listed = [model["id"] for model in (await running.get("/v1/models")).json["data"]]
        assert {"shop-1", "shop-2", "gpt-4o", module_pool} <= set(listed)
        assert not {"nowhere", gone} & set(listed)
        for name in (*listed, gone):
            told = await running.post(
                "/v1/completions", {"prompt": "hi", "max_tokens": 1, "model": name}
            )
            assert told.status == 200, told.text
            assert told.json["model"] == name
        shown = await running.get("/v1/models/gpt-4o")
        assert shown.json["pool"] == module_pool
        assert shown.json["max_model_len"] > 0
        assert (await running.get("/v1/models/")).json["data"]
        told = await running.post("/v1/completions", {"prompt": "hi", "model": "nowhere"})
        assert told.status == 404
        assert (await running.get("/v1/models/nowhere")).status == 404
    waits = await null_door.post("/v1/jobs", {"prompt": "hi", "model": gone})
    assert waits.json["status"] == "waiting"
    await null_door.post(f"/v1/jobs/{waits.json['id']}/cancel", None)


async def test_strict_door_refuses_unknown_fields_and_web_pages_may_call(
    null_door: Door, private_server: EmbeddedServer, module_pool: str
) -> None:
    """With `strict` a field that nobody knows has its 400; origins that are allowed are told so."""
    del null_door
    settings: dict[str, Any] = {
        "gateway_strict": True,
        "gateway_cors_origins": ("https://shop.example",),
        "gateway_max_header_bytes": 4096,
    }
    async with door(private_server.url, module_pool, **settings) as running:
        told = await running.post("/v1/completions", {"prompt": "hi", "frobnicate": 1})
        assert (told.status, told.error["param"]) == (400, "frobnicate")
        for origin, allowed in (("https://shop.example", True), ("https://other.example", False)):
            asked = await running.get("/healthz", Origin=origin)
            assert (asked.headers.get("Access-Control-Allow-Origin") == origin) is allowed
        assert (await running.get("/health")).json == (await running.get("/healthz")).json
        told = await running.get("/healthz", X_Long="x" * 5000)
        assert (told.status, told.error["code"]) == (431, "headers_too_large")
        named = await running.get("/healthz", X_Request_Id="mine-1")
        assert named.headers["X-Request-Id"] == "mine-1"
        page = (await running.get("/openapi.json")).json
        assert "/v1/chat/completions" in page["paths"]


async def test_methods_and_encodings_of_others_are_answered(null_door: Door) -> None:
    """A probe may ask for the headers alone; what a path takes is told, and what a body may be."""
    for path in ("/healthz", "/health", "/readyz"):
        told = await null_door.ask("HEAD", path)
        assert (told.status, told.text) == (200, "")
    for method, path, allowed in (
        ("PUT", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET"),
        ("PATCH", "/v1/jobs/x", "DELETE, GET"),
    ):
        told = await null_door.ask(method, path)
        assert (told.status, told.headers["Allow"]) == (405, allowed)
    told = await null_door.post("/v1/completions", b"\x1f\x8b", Content_Encoding="gzip")
    assert (told.status, told.error["code"]) == (415, "body_is_packed")


async def test_client_that_looks_late_sees_that_its_body_is_too_large(null_door: Door) -> None:
    """One that sends all of a body before it reads an answer gets the status, and no break."""
    url = URL(null_door.url)

    def sent() -> int:
        connection = HTTPConnection(str(url.host), url.port, timeout=PATIENCE_S)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", b"x" * 20_000_000)
            return connection.getresponse().status

    assert await asyncio.to_thread(sent) == 413


async def test_connection_that_says_nothing_is_closed(
    private_server: EmbeddedServer, module_pool: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing, half a request, or half of a second one: none keeps a connection for ever."""
    monkeypatch.setattr("tokenbus.producer.gateway.command._IDLE_S", 0.3)
    head = b"GET /healthz HTTP/1.1\r\nHost: door\r\n"
    async with door(private_server.url, module_pool) as running:
        url = URL(running.url)
        for sent in (b"", head, head + b"\r\n" + head, b"POST /none HTTP/1.1\r\nContent-Length: 9"):
            reader, writer = await asyncio.open_connection(url.host, url.port)
            writer.write(sent)
            async with asyncio.timeout(PATIENCE_S):
                told = await reader.read()
            assert told.count(b"200 OK") == sent.count(b"\r\n\r\n")
            writer.close()
