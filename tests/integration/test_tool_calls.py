"""Tools of a job: the model calls them, validly by construction, also past a death."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from workers.brake import Brake
from workers.null_workers import Story, follow, worker

from tokenbus.engine.weights import model_store
from tokenbus.producer.contract.messages.wire_delta import joined
from tokenbus.producer.contract.result import JobFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

ORDER = {
    "type": "object",
    "properties": {
        "order_id": {"type": "integer", "minimum": 1000, "maximum": 9999},
        "carrier": {"enum": ["north post", "fast parcels"]},
        "note": {"type": "string", "minLength": 20, "maxLength": 60},
    },
    "required": ["order_id", "carrier", "note"],
    "additionalProperties": False,
}
# Tokens that the engine may be ahead of the log.
NUM_AHEAD = 8
MESSAGES = [{"role": "user", "content": "Where is my order 4711?"}]


def tool(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Spell a tool as chat APIs do."""
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.fixture(params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the folder of a tiny model, or of the demo model."""
    if request.param == "tiny":
        return str(TinyModel(tmp_path).folder)
    return str(model_store.pull(request.param))


# One kind of server: what is shown is the engine's and the worker's, and starting them is dear.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_calls_are_valid_and_the_same_after_the_engine_died(
    client: AsyncClient, redis_url: str, pool: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 1.5 the call validates; killed in the middle of it, it ends as unbroken.

    Readers hear its arguments grow, across the death and from any cursor.
    A tool whose schema cannot be met fails its own job with the reason.
    """
    settings = {
        "engine": "paged", "model": model, "dtype": "float32",
        "device": "cpu", "num_pages": 100, "num_threads": 1,
    }  # fmt: skip
    asked: dict[str, Any] = {
        "messages": MESSAGES, "tools": [tool("track", ORDER), tool("wait", {})],
        "tool_choice": {"name": "track"}, "parallel_tool_calls": False,
        "temperature": 1.5, "seed": 5, "max_tokens": 150,
    }  # fmt: skip
    brake = Brake(monkeypatch, NUM_AHEAD)
    async with worker(pool, redis_url, **settings) as running:
        unbroken = await client.submit(**asked)
        bad = {"type": "integer", "minimum": 5, "maximum": 3}
        refused = await client.submit(
            messages=MESSAGES, tools=[tool("count", {"properties": {"n": bad}, "required": ["n"]})]
        )
        unreadable = await client.submit(
            messages=MESSAGES, tools=[tool("count", {"properties": {"n": {"$dynamicRef": "#n"}}})]
        )
        whole = await client.result(unbroken, timeout_s=PATIENCE_S)
        with pytest.raises(JobFailed, match="Unsatisfiable") as met:
            await client.result(refused, timeout_s=PATIENCE_S)
        assert met.value.code == "grammar"
        with pytest.raises(JobFailed, match="/properties/n") as met:
            await client.result(unreadable, timeout_s=PATIENCE_S)
        assert met.value.code == "grammar"
        half = len(whole.choices[0].ids) // 2
        assert half > 2 * NUM_AHEAD
        brake.set(half)
        job = await client.submit(**asked)
        killed = False

        def kill_once(story: Story) -> None:
            nonlocal killed
            if story.last >= half and not killed:
                assert running.engine_pid is not None
                killed = True
                os.kill(running.engine_pid, signal.SIGKILL)
                brake.release()

        story = await follow(client, job, kill_once)
        resumed = await client.result(job, timeout_s=PATIENCE_S)
        again = await follow(client, job)
    assert killed
    assert len(story.epochs) == 2
    assert resumed.choices[0].ids == whole.choices[0].ids
    for result in (whole, resumed):
        assert result.finish.reason == "stop"
        [call] = result.tool_calls
        assert call.name == "track"
        jsonschema.validate(json.loads(call.arguments), ORDER)
        assert result.content == ""
        assert result.text.endswith("</tool_call>")
        assert len(call.id) == 9
        assert (result.finish_reason, result.finish.choices) == ("tool_calls", ("stop",))
        [told] = result.message.tool_calls
        assert (told.id, told.name, told.arguments) == (call.id, call.name, call.arguments)
    for seen in (story, again):
        [heard] = joined(seen.deltas[0]).calls
        [call] = resumed.tool_calls
        assert (heard.id, heard.name, heard.arguments) == (call.id, call.name, call.arguments)
    assert len(story.deltas[0]) > 2
    assert whole.tool_calls[0].arguments == resumed.tool_calls[0].arguments
    assert whole.tool_calls[0].id != resumed.tool_calls[0].id
