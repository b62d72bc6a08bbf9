"""The taxi drives a model as `transformers` does, in a process of its own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from tokenbus.worker.demo.jobs import shop_jobs
from tokenbus.worker.demo.taxi import TaxiBrokeDown, TaxiOrder, drive_taxi

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.processes


# The demo, from end to end, has a ride of it in `make test`.
@pytest.mark.slow
def test_taxi_reports_each_job_and_the_ride(tiny_model: Path) -> None:
    """Each job is reported in order, none is longer than asked, and the ride sums them up."""
    chats = [job.messages for job in shop_jobs(3)]
    order = TaxiOrder(str(tiny_model), chats, max_tokens=6, num_threads=1, dtype="float32")
    jobs: list[tuple[int, int, float]] = []
    trials: list[tuple[str, float]] = []
    ride = drive_taxi(
        order, on_job=lambda *job: jobs.append(job), on_trial=lambda *trial: trials.append(trial)
    )
    assert {attention for attention, _ in trials} == {"sdpa", "eager"}
    assert [job for job, _, _ in jobs] == [0, 1, 2]
    assert all(1 <= num_tokens <= 6 and seconds > 0 for _, num_tokens, seconds in jobs)
    assert ride.attention in {"sdpa", "eager"}
    assert (ride.num_jobs, ride.output_tokens) == (3, sum(tokens for _, tokens, _ in jobs))
    assert ride.tokens_per_s == pytest.approx(ride.output_tokens / sum(s for _, _, s in jobs))


def test_taxi_that_breaks_down_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies hands over its last words."""
    (tmp_path / "torch.py").write_text("raise ImportError('no petrol')\n")
    path = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), path))))
    order = TaxiOrder(str(tmp_path), [], max_tokens=1, num_threads=1, dtype="float32")
    with pytest.raises(TaxiBrokeDown, match="no petrol"):
        drive_taxi(order, on_job=lambda *_: None, on_trial=lambda *_: None)
