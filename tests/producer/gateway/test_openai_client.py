"""OpenAI's own client at responses, files and batches: we take what it sends, it reads ours."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways.doors import door
from workers.batches import completion_line
from workers.null_workers import worker
from workers.stubs import until

from tokenbus.worker.control.service import batch_service
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.clients]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def openai_client(
    private_server: EmbeddedServer, module_pool: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Any]:
    """Give a client of a gateway with a worker, files and batches behind it."""
    openai = pytest.importorskip("openai")
    folder = str(tmp_path_factory.mktemp("files"))
    async with (
        worker(module_pool, private_server.url, lease_ttl_s=60, null_tokens_per_s=200),
        door(private_server.url, module_pool, files_url=folder) as running,
        openai.AsyncOpenAI(api_key="none", base_url=f"{running.url}/v1", max_retries=0) as client,
    ):
        assert running.gateway is not None
        queue = await running.gateway.models.client(module_pool)
        settings = ControlSettings.load(pool=module_pool)
        task = asyncio.create_task(batch_service(queue, folder, settings).run())
        yield client
        task.cancel()
        await asyncio.wait([task])


async def test_stream_is_read_and_resumed(openai_client: Any, module_pool: str) -> None:
    """Typed events to the end, and from a sequence number on the same ones again."""
    stream = await openai_client.responses.create(
        model=module_pool, input="x", max_output_tokens=8, stream=True
    )
    events = [event async for event in stream]
    response = events[-1].response
    assert events[-1].type == "response.incomplete"
    deltas = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert deltas == response.output_text
    again = await openai_client.responses.retrieve(response.id, stream=True, starting_after=4)
    assert [event async for event in again] == events[5:]
    assert await openai_client.responses.retrieve(response.id) == response


async def test_stream_helper_gathers_the_answer(openai_client: Any, module_pool: str) -> None:
    """The helper that puts events together finds all that it looks for."""
    async with openai_client.responses.stream(
        model=module_pool, input="x", max_output_tokens=4
    ) as stream:
        types = [event.type async for event in stream]
    assert types[0] == "response.created"
    assert "response.output_text.done" in types


async def test_background_chain_cancel_and_deletion(openai_client: Any, module_pool: str) -> None:
    """Polled, gone on from, listed, cancelled and deleted by the client's own calls."""
    import openai

    responses = openai_client.responses
    made = await responses.create(
        model=module_pool, input="x", background=True, max_output_tokens=4, metadata={"a": "b"}
    )
    assert (made.status, made.metadata) == ("queued", {"a": "b"})

    async def has_ended() -> bool:
        return bool((await responses.retrieve(made.id)).status == "incomplete")

    await until(has_ended)
    items = [item async for item in responses.input_items.list(made.id)]
    assert [item.content[0].text for item in items] == ["x"]
    chained = await responses.create(
        model=module_pool, input="y", previous_response_id=made.id, max_output_tokens=2
    )
    assert chained.previous_response_id == made.id
    long = await responses.create(
        model=module_pool, input="x", background=True, max_output_tokens=8000
    )
    assert (await responses.cancel(long.id)).status == "cancelled"
    await responses.delete(made.id)
    with pytest.raises(openai.NotFoundError):
        await responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError) as caught:
        await responses.create(model=module_pool, input="x", previous_response_id=made.id)
    assert caught.value.code == "previous_response_not_found"


async def test_batch_of_a_file(openai_client: Any, module_pool: str) -> None:
    """Uploaded, run, listed in pages, read and deleted."""
    rows = [json.dumps(completion_line(number, model=module_pool)) for number in range(5)]
    file = await openai_client.files.create(
        file=("in.jsonl", "\n".join(rows).encode()), purpose="batch"
    )
    batch = await openai_client.batches.create(
        input_file_id=file.id, endpoint="/v1/completions", completion_window="24h"
    )

    async def has_ended() -> bool:
        return bool((await openai_client.batches.retrieve(batch.id)).status == "completed")

    await until(has_ended)
    ended = await openai_client.batches.retrieve(batch.id)
    assert ended.request_counts.completed == 5
    content = await openai_client.files.content(ended.output_file_id)
    names = {json.loads(row)["custom_id"] for row in content.text.splitlines()}
    assert names == {f"line-{number}" for number in range(5)}
    listed = [each.id async for each in openai_client.files.list(limit=1)]
    assert set(listed) == {file.id, ended.output_file_id}
    assert [each.id async for each in openai_client.batches.list(limit=1)] == [batch.id]
    assert (await openai_client.files.delete(file.id)).deleted
