"""Counters of a worker: what is noted is counted once, whoever asks and whenever."""

from __future__ import annotations

import threading
from array import array

from tokenbus.engine.chat.usage import Usage
from tokenbus.engine.types import EngineStats
from tokenbus.producer.contract.events import Finish
from tokenbus.worker.messages.publishing import Progress
from tokenbus.worker.metrics import Metrics
from tokenbus.worker.token_moments import TokenMoments

NUM_NOTES = 20_000
LENGTH = Finish("length", Usage(5, 2, 3), choices=("length",))


def _note(metrics: Metrics, number: int) -> None:
    """Note a step, a call of two entries, and a job of three tokens that leaves in one of ways."""
    metrics.stepped(EngineStats(100, 50, 10, number, 1), 0.01)
    call = ([1.0, 1.0 + number % 2], 2.5, 3.0)
    metrics.published(Progress(logged_tokens=2, calls=[call], firsts=[(1, 0.1)], ends=[(1, 0.2)]))
    if number % 2:
        metrics.left(1, "acme", "requeued")
    else:
        metrics.left(1, "acme", "finished", LENGTH, TokenMoments(array("d", (1, 2, 3)), (0, 3)))


def test_nothing_is_lost_or_counted_twice_while_scrapes_count() -> None:
    """The event loop notes while two other threads count, as scrapes do."""
    metrics, has_ended = Metrics(), threading.Event()

    def scrape() -> None:
        while not has_ended.is_set():
            metrics.count()

    threads = [threading.Thread(target=scrape) for _ in range(2)]
    for thread in threads:
        thread.start()
    for number in range(NUM_NOTES):
        _note(metrics, number)
    has_ended.set()
    for thread in threads:
        thread.join()
    metrics.count()
    half = NUM_NOTES // 2
    assert (metrics.step_time.count, metrics.peak_running) == (NUM_NOTES, NUM_NOTES - 1)
    assert (metrics.tokens_logged, metrics.log_entries) == (2 * NUM_NOTES, 2 * NUM_NOTES)
    assert (metrics.log_calls, metrics.publish_lag.count) == (NUM_NOTES, 2 * NUM_NOTES)
    assert (metrics.ttft[1].count, metrics.e2e[1].count) == (NUM_NOTES, NUM_NOTES)
    assert (metrics.jobs_finished, metrics.jobs_requeued) == (half, half)
    assert metrics.ends == {(1, "acme", "finished"): half, (1, "acme", "requeued"): half}
    tokens = {kind: num for (_, _, kind), num in metrics.job_tokens.items()}
    assert tokens == {"prompt": 5 * half, "cached": 2 * half, "generated": 3 * half}
    assert metrics.choices == {"length": half}
    assert (metrics.itl[1].count, metrics.itl[1].sum_s) == (2 * half, 2 * half)


def test_steps_are_counted_though_nobody_asks() -> None:
    """A worker whose session is gone writes no status; its notes do not grow for that."""
    metrics = Metrics()
    for number in range(2500):
        _note(metrics, number)
    assert metrics.step_time.count >= 1500
    assert metrics.log_calls >= 1500
    assert sum(metrics.ends.values()) >= 1500
