"""A pool without workers wakes with its first job, grows with its backlog, and sleeps again."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from scaling.scaled_object import ScaledObject
from scaling.scaled_run import scaled_pool

from tokenbus.producer.client.backlog import Assumed
from tokenbus.producer.server.embedded import start_private
from tokenbus.worker.bench.load.arrivals import TraceRow

ROOT = Path(__file__).resolve().parents[2]
MANIFEST = ROOT / "deploy/kubernetes/components/autoscaling/scaled-object.yaml"
SPEED, LOAD_S, JOBS_PER_S = 10.0, 240.0, 4.0

pytestmark = [pytest.mark.slow, pytest.mark.processes]


async def test_pool_grows_from_zero_and_goes_back_with_nobody_refused(tmp_path: Path) -> None:
    """One worker is woken, once; others follow by what waits; all jobs end, and all workers go."""
    draw, at_s, rows = random.Random(3), 0.0, []
    while (at_s := at_s + draw.expovariate(JOBS_PER_S)) < LOAD_S:
        rows.append(TraceRow(at_s, draw.randrange(20, 300), draw.randrange(5, 50)))
    # A worker ends one and a half jobs a second of the load.
    worker = {"max_num_seqs": 16, "null_tokens_per_s": 25.0, "publishers": 0}
    server = start_private()
    try:
        with scaled_pool(
            server.url, tmp_path, ScaledObject.read(MANIFEST), speed=SPEED, worker=worker,
            assumed=Assumed(tokens_per_s=3000, start_s=5),
        ) as pool:  # fmt: skip
            run = await pool.serve(rows)
    finally:
        server.close()
    assert run.refusals == []
    assert run.num_accepted == len(run.ended) == len(rows)
    assert {job.reason for job in run.ended} == {"length"}
    counts = [number for _, number in run.replicas]
    assert (counts[0], counts[-1], run.num_cold_starts) == (1, 0, 1)
    assert max(counts) > 1
    assert len(run.starts_s) >= max(counts)
