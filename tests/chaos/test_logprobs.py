"""Logprobs of a job whose worker is killed: the next worker's entries go on where its own ended."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from rides.scale import LEASE, long_row
from rides.scored_jobs import SCHEMA_JOB, ScoredModel, check_replays, marks, read
from servers.wire_proxy import Moment
from workers.forkserver import forked_worker
from workers.wired import wired_worker

from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient


@pytest.fixture(params=["tiny", "smollm2-135m"])
def scored(request: pytest.FixtureRequest, tmp_path: Path) -> ScoredModel:
    """Return a tiny model, or the demo model; skip where that is neither kept nor to be fetched."""
    if request.param == "tiny":
        return ScoredModel(TinyModel(tmp_path).folder)
    try:
        return ScoredModel(model_store.pull(request.param))
    except ModelNotFound as error:
        pytest.skip(str(error))


@long_row
@pytest.mark.parametrize("moment", [Moment.NEVER, Moment.LOST], ids=lambda moment: moment.value)
async def test_entries_go_on_in_another_worker(
    client: AsyncClient, redis_url: str, scored: ScoredModel, moment: Moment
) -> None:
    """Of three constrained choices each id has its entry, from each cursor, whoever logged it.

    The worker is killed at its fourth entry of the log, written or not; ids and what was forced are
    those of the unbroken run, each logprob transformers' within 1e-4.
    """
    settings: dict[str, Any] = {
        "engine": "paged", "model": str(scored.folder), "dtype": "float32", "device": "cpu",
        "num_pages": 100, "num_threads": 1, "redis_url": redis_url,
        "pool": client.scripts.keys.pool,
    } | LEASE  # fmt: skip
    async with wired_worker(**settings) as first:
        trap = first.die_at("append", moment, 4)
        job = await client.submit(**SCHEMA_JOB)
        await trap.closed()
        async with forked_worker(**settings):
            events = await read(client, job.job_id)
            assert len({event.epoch for event in events}) > 1
            resumed = await client.result(job.job_id, timeout_s=PATIENCE_S)
            scored.check(SCHEMA_JOB, resumed)
            await check_replays(client, events, resumed)
            whole = await client.submit(**SCHEMA_JOB)
            unbroken = await client.result(whole.job_id, timeout_s=PATIENCE_S)
    assert [each.ids for each in resumed.choices] == [each.ids for each in unbroken.choices]
    assert marks(resumed) == marks(unbroken)
    assert all("f" in found and "." in found for found in marks(resumed))
