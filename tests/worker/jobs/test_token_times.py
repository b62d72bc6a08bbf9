"""Token times: a step noted once gives each job the moments of its own rows."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from tokenbus.worker.held.token_times import TokenTimes


def _gaps(moments: list[float]) -> list[float]:
    """Return the gaps of one job, whose rows came at these moments."""
    return sorted(after - before for before, after in pairwise(moments))


@pytest.mark.parametrize("misses", [0.0, 0.02, 0.5], ids="misses{}".format)
@pytest.mark.parametrize("most", [1, 3], ids="choices{}".format)
def test_moments_of_each_job_are_those_of_its_rows(misses: float, most: int) -> None:
    """Jobs begin, miss steps, have rows of several choices, end: the gaps are those of each alone.

    Among them are rows without tokens, rows of jobs that are gone, and more steps than are kept.
    """
    draw = random.Random(7)
    times: TokenTimes[str] = TokenTimes()
    choices: dict[str, int] = {}
    noted: dict[str, list[float]] = {}
    now = 0.0
    for step in range(4000):
        now += draw.choice((0.25, 1.0))
        if len(choices) < 8 and draw.random() < 0.02:
            choices[f"job{step}"] = draw.randint(1, most)
        rows: list[tuple[str | None, int]] = [(None, 1)] if draw.random() < 0.1 else []
        for job, num in choices.items():
            present = [1 for _ in range(num) if draw.random() >= misses]
            rows += [(job, draw.randint(1, 3)) for _ in present]
            if not present and draw.random() < 0.5:
                rows.append((job, 0))
        for job, count in rows:
            if job is None or not count:
                continue
            if job not in noted:
                times.begin(job, choices[job])
            noted.setdefault(job, []).append(now)
        num_rows = sum(job is not None and count > 0 for job, count in rows)
        times.stepped(now, [job for job, _ in rows], [count for _, count in rows], num_rows)
        for job in [*choices]:
            # One stays nearly to the end, past the moments that are kept for nobody.
            if draw.random() < (0.0002 if job == next(iter(noted), None) else 0.005):
                del choices[job]
                found, expected = times.end(job).listed().tolist(), noted.get(job, [])
                assert _gaps(found) == _gaps(expected)
                assert (found[:1], found[-1:]) == (expected[:1], expected[-1:])
    assert len(noted) > 30


def test_moments_are_kept_only_for_jobs_that_run() -> None:
    """With the last job go all moments, and with the oldest those before the next one began."""
    times: TokenTimes[str] = TokenTimes()
    times.begin("a", 1)
    for now in range(5000):
        if now == 4000:
            times.begin("b", 1)
        num = 1 if now < 4000 else 2
        times.stepped(now, ["a", "b"][:num], [1] * num, num)
    assert times.end("a").listed().tolist() == list(range(5000))
    assert len(times._moments) == 1000
    assert times.end("b").listed().tolist() == list(range(4000, 5000))
    assert not times._moments
    assert not times.end("b")
