"""The real engine behind the queue: a tiny model, token for token like transformers."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from workers.brake import Brake
from workers.null_workers import follow, worker

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient

NUM_TOKENS = 48
PROMPTS = ["good morning", "where is my parcel?", "I want to return a pair of shoes", "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Save a tiny random Llama with a tokenizer, drawn so that its output varies."""
    tiny = TinyModel(tmp_path_factory.mktemp("tiny-llama"))
    (tiny.folder / "generation_config.json").write_text('{"temperature": 0.0}')
    return tiny


# One kind of server: what is shown is the engine's and the worker's, and starting them is dear.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_greedy_output_equals_transformers_also_after_the_engine_died(
    client: AsyncClient,
    redis_url: str,
    pool: str,
    model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Batched, and resumed from the log after SIGKILL of the engine, each job matches generate."""
    wanted = [model.greedy(prompt, NUM_TOKENS) for prompt in PROMPTS]
    assert all(len(set(tokens)) >= 10 for tokens in wanted)
    settings = {
        "engine": "paged",
        "model": str(model.folder),
        "dtype": "float32",
        "device": "cpu",
        "num_pages": 64,
        "num_threads": 1,
    }
    brake = Brake(monkeypatch, num_ahead=4)
    brake.set(NUM_TOKENS // 2)
    async with worker(pool, redis_url, **settings) as running:
        jobs = [
            await client.submit(prompt, max_tokens=NUM_TOKENS, **fields)
            for prompt, fields in zip(PROMPTS, [{}, *[{"temperature": 0.0}] * 3], strict=True)
        ]
        killed = False

        def kill_once(story: Any) -> None:
            nonlocal killed
            if story.last >= 5 and not killed and running.engine_pid is not None:
                killed = True
                os.kill(running.engine_pid, signal.SIGKILL)
                brake.release()

        stories = await asyncio.gather(*(follow(client, job, kill_once) for job in jobs))
        assert [story.ids[0] for story in stories] == wanted
        assert killed
        assert any(len(story.epochs) == 2 for story in stories)
        for story, prompt in zip(stories, PROMPTS, strict=True):
            assert story.text == model.text(story.ids[0]), prompt
        results = [await client.result(job) for job in jobs]
        # Nothing was chosen for the first, so the checkpoint's own temperature held.
        assert [result.finish.sampling for result in results] == [{"temperature": 0.0}, {}, {}, {}]
