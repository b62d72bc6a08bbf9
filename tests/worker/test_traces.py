"""Traces: the spans of a job by its `traceparent`, over a takeover too, and of nobody else."""

from __future__ import annotations

import secrets
import time
from base64 import b64encode
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from servers.fixtures import pool, redis_url, server
from workers.null_workers import follow, until, worker

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.contract.new_job import digest_of
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.scripts.control import ClaimedWebhook
from tokenbus.producer.telemetry.trace_setup import make_provider
from tokenbus.producer.telemetry.tracing import TraceContext, current_traceparent
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.control.webhooks.courier import PostReply
from tokenbus.worker.control.webhooks.delivery import Webhooks

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["pool", "redis_url", "server"]

trace = pytest.importorskip("opentelemetry.trace", reason="the extra `tracing` is not installed")
export = pytest.importorskip("opentelemetry.sdk.trace.export")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")


# A process takes one provider in its life.
@pytest.fixture(scope="session")
def told() -> Callable[[int], list[Any]]:
    """Set up a provider for this process; return what lists the spans of a trace."""
    kept = in_memory.InMemorySpanExporter()
    provider = make_provider("worker", "p")
    provider.add_span_processor(export.SimpleSpanProcessor(kept))
    trace.set_tracer_provider(provider)

    def spans(trace_id: int) -> list[Any]:
        return [each for each in kept.get_finished_spans() if each.context.trace_id == trace_id]

    return spans


def _drawn() -> TraceContext:
    return TraceContext(secrets.randbits(127) + 1, secrets.randbits(63) + 1)


async def test_job_is_told_in_spans(
    redis_url: str, pool: str, told: Callable[[int], list[Any]]
) -> None:
    """Queue, prefill, decode and publish stand below the job's span, in the caller's trace."""
    context = _drawn()
    async with worker(pool, redis_url), await AsyncClient.connect(redis_url, pool=pool) as client:
        for traceparent in (context.traceparent, None, context.traceparent[:-1] + "0"):
            job = await client.submit("a secret", max_tokens=20, seed=1, traceparent=traceparent)
            await follow(client, job)
        await until(lambda: any(s.name == "tokenbus.job" for s in told(context.trace_id)))
        spans = told(context.trace_id)
    by_name = {span.name: span for span in spans}
    assert sorted(by_name) == ["decode", "prefill", "publish", "queue", "tokenbus.job"]
    assert len(spans) == 5, "only the job under a sampled trace is told of"
    root = by_name.pop("tokenbus.job")
    assert root.parent.span_id == context.span_id
    assert root.attributes["tokenbus.output_tokens"] == 20
    assert root.attributes["tokenbus.outcome"] == "finished"
    assert all(span.parent.span_id == root.context.span_id for span in by_name.values())
    assert all(root.start_time <= s.start_time <= s.end_time <= root.end_time for s in spans)
    assert by_name["queue"].end_time <= by_name["prefill"].end_time
    assert by_name["prefill"].end_time == by_name["decode"].start_time
    assert not any("secret" in str(dict(span.attributes)) for span in spans)


# One kind of server: what reads an answer is the worker's.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_reading_an_answer_for_calls_is_a_span_of_its_own(
    redis_url: str, pool: str, told: Callable[[int], list[Any]], tmp_path: Path
) -> None:
    """It begins with the first token, and says how long the reading took; no argument is in it."""
    context = _drawn()
    model = str(TinyModel(tmp_path).folder)
    sizes: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_pages": 100}
    schema = {"properties": {"place": {"enum": ["secret"]}}, "required": ["place"]}
    function = {"name": "track", "parameters": {"type": "object", **schema}}
    async with (
        worker(pool, redis_url, engine="paged", model=model, num_threads=1, **sizes),
        await AsyncClient.connect(redis_url, pool=pool) as client,
    ):
        job = await client.submit(
            messages=[{"role": "user", "content": "Where is it?"}],
            tools=[{"type": "function", "function": function}],
            tool_choice={"name": "track"}, max_tokens=100, traceparent=context.traceparent,
        )  # fmt: skip
        [call] = (await client.result(job, timeout_s=PATIENCE_S)).tool_calls
        assert "secret" in call.arguments
        await until(lambda: any(s.name == "tokenbus.job" for s in told(context.trace_id)))
    by_name = {span.name: span for span in told(context.trace_id)}
    root, read = by_name["tokenbus.job"], by_name["tool_parse"]
    assert read.parent.span_id == root.context.span_id
    assert by_name["decode"].start_time == read.start_time < read.end_time <= root.end_time
    took_ms = (read.end_time - read.start_time) / 1e6
    assert 0 < read.attributes["tokenbus.busy_ms"] < took_ms
    assert not any("secret" in str(dict(span.attributes)) for span in by_name.values())


async def test_owner_that_goes_on_links_to_the_one_before(
    redis_url: str, pool: str, told: Callable[[int], list[Any]]
) -> None:
    """A job of two owners has a span of each, the later linked to the earlier."""
    context = _drawn()
    async with await AsyncClient.connect(redis_url, pool=pool) as client:
        async with worker(pool, redis_url, null_tokens_per_s=50.0, drain_deadline_s=0) as first:
            # Far more than the first worker has time for.
            job = await client.submit("x", max_tokens=2000, traceparent=context.traceparent)
            await until(lambda: first.metrics.tokens_logged > 5)
        async with worker(pool, redis_url):
            await follow(client, job)
            await until(
                lambda: len([s for s in told(context.trace_id) if s.name == "tokenbus.job"]) == 2
            )
    one, two = (span for span in told(context.trace_id) if span.name == "tokenbus.job")
    assert [span.attributes["tokenbus.outcome"] for span in (one, two)] == ["requeued", "finished"]
    assert [link.context.span_id for link in two.links] == [one.context.span_id]
    assert two.attributes["tokenbus.resumed_after"] > 5


async def test_receiver_of_a_webhook_is_told_of_its_span(told: Callable[[int], list[Any]]) -> None:
    """A try of a traced job's webhook is a span below the same parent, and goes along as header."""
    context, sent = _drawn(), []

    class Courier:
        async def post(self, url: str, headers: dict[str, str], body: bytes) -> PostReply:
            sent.append((url, headers, body))
            return PostReply(503)

    courier: Any = Courier()
    keys: dict[str, tuple[str, ...]] = {"acme": ("whsec_" + b64encode(b"k" * 32).decode(),)}
    hooks = Webhooks(Mock(), courier, keys=keys, settings=ControlSettings.load())
    hook = ClaimedWebhook(
        *("j", 1, "acme", "http://x/y", {}, "{}", 0, 2, b""), traceparent=context.traceparent
    )
    answer = await hooks._try(hook, b"{}", time.monotonic())
    assert answer is not None
    [span] = told(context.trace_id)
    assert (span.name, span.parent.span_id) == ("tokenbus.webhook", context.span_id)
    assert span.attributes["tokenbus.attempt"] == 3
    header = TraceContext.parse(sent[0][1]["traceparent"])
    assert header == TraceContext(context.trace_id, span.context.span_id)


def test_client_submits_under_the_span_that_is_open(told: Callable[[int], list[Any]]) -> None:
    """What is open where a job is submitted is its parent; a retry under another is no conflict."""
    del told
    assert current_traceparent() is None
    with trace.get_tracer("t").start_as_current_span("request") as span:
        found = TraceContext.parse(current_traceparent())
        assert found is not None
        assert found.span_id == span.get_span_context().span_id
    digests = {
        digest_of(JobRequest.build(prompt="x", traceparent=each))
        for each in (None, _drawn().traceparent, _drawn().traceparent)
    }
    assert len(digests) == 1


@pytest.mark.parametrize(
    "given",
    [
        None,
        "",
        "x",
        "00-" + "0" * 32 + "-" + "1" * 16 + "-01",
        "00-" + "1" * 32 + "-" + "1" * 16 + "-00",
    ],
)
def test_what_is_no_sampled_trace_is_none(given: str | None) -> None:
    """A text that is no traceparent, a trace without an id, and one that is not sampled."""
    assert TraceContext.parse(given) is None
