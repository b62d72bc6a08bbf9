"""Logprobs of the prompt travel from the engine into the result, also past a death."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
import torch
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from workers.brake import Brake
from workers.null_workers import Story, follow, worker

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

PROMPT = "where is my parcel, and when will it arrive?"
NUM_TOKENS = 60


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """Save a tiny model."""
    return TinyModel(tmp_path)


@pytest.mark.slow
# One kind of server: what is shown is the engine's and the worker's, and starting them is dear.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_prompt_logprobs_are_those_of_transformers_after_the_engine_died(
    client: AsyncClient,
    redis_url: str,
    pool: str,
    model: TinyModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One entry per prompt token, none for the first; computed again by the next engine."""
    settings = {
        "engine": "paged", "model": str(model.folder), "dtype": "float32", "device": "cpu",
        "num_pages": 64, "num_threads": 1,
    }  # fmt: skip
    brake = Brake(monkeypatch, num_ahead=1)
    brake.set(3)
    async with worker(pool, redis_url, **settings) as running:
        job = await client.submit(PROMPT, max_tokens=NUM_TOKENS, temperature=0.0, prompt_logprobs=2)
        killed = False

        def kill_once(story: Story) -> None:
            nonlocal killed
            if story.last >= 3 and not killed and running.engine_pid is not None:
                killed = True
                os.kill(running.engine_pid, signal.SIGKILL)
                brake.release()

        story = await follow(client, job, kill_once)
        result = await client.result(job, timeout_s=PATIENCE_S)
    assert killed
    assert len(story.epochs) == 2
    wanted = model.prompt_logprobs(PROMPT)
    first, *others = result.prompt_logprobs
    assert first is None
    assert all(len(top) == 2 for _, _, top in others)
    torch.testing.assert_close(torch.tensor([entry[0] for entry in others]), wanted)
