"""Logprobs of constrained jobs: an entry per token id in events, replays and results."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from rides.scored_jobs import JOBS, SCHEMA_JOB, ScoredModel, check_replays, marks, read
from workers.brake import Brake
from workers.null_workers import worker

from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.events import Event

# Tokens that the engine may be ahead of the log.
NUM_AHEAD = 2


@pytest.fixture(params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> ScoredModel:
    """Return a tiny model, or the demo model."""
    if request.param == "tiny":
        return ScoredModel(TinyModel(tmp_path).folder)
    return ScoredModel(model_store.pull(request.param))


# One kind of server: what is shown is the engine's and the worker's, and starting them is dear.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_every_id_has_its_entry_also_after_the_engine_died(
    client: AsyncClient,
    redis_url: str,
    pool: str,
    model: ScoredModel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each equals transformers' within 1e-4, streamed, from each cursor, and in the result.

    Killed in the middle of three constrained choices, the job goes on with the same entries.
    """
    settings = {
        "engine": "paged", "model": str(model.folder), "dtype": "float32",
        "device": "cpu", "num_pages": 100, "num_threads": 1,
    }  # fmt: skip
    brake = Brake(monkeypatch, NUM_AHEAD)
    results = []
    async with worker(pool, redis_url, **settings) as running:
        for asked in JOBS:
            job = await client.submit(**asked)
            events = await read(client, job.job_id)
            results.append(await client.result(job.job_id, timeout_s=PATIENCE_S))
            model.check(asked, results[-1])
            if asked is not SCHEMA_JOB:
                await check_replays(client, events, results[-1])
        whole = results[0]
        half = whole.last // 2
        brake.set(half)
        job = await client.submit(**SCHEMA_JOB)
        killed = False

        def kill_once(event: Event) -> None:
            nonlocal killed
            if event.to >= half and not killed:
                assert running.engine_pid is not None
                killed = True
                os.kill(running.engine_pid, signal.SIGKILL)
                brake.release()

        events = await read(client, job.job_id, on_event=kill_once)
        resumed = await client.result(job.job_id, timeout_s=PATIENCE_S)
        assert len({event.epoch for event in events}) > 1
        model.check(SCHEMA_JOB, resumed)
        await check_replays(client, events, resumed)
    assert [each.ids for each in resumed.choices] == [each.ids for each in whole.choices]
    assert marks(resumed) == marks(whole)
    assert all("f" in found and "." in found for found in marks(whole))
    assert set(marks(results[2])[0]) == {"f"}
    assert [each.text for each in results[3].choices] == ["The answer is "]
    assert len(results[4].choices[0].ids) == 4
    assert results[5].tool_calls
    assert set(marks(results[6])[0]) == {"."}
