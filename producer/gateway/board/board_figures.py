"""The figures of a pool as the board's page reads them: JSON, with units in the names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.watching.conditions import conditions_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.producer.client.pool_figures import PoolFigures
    from tokenbus.producer.client.watching.ended_jobs import EndedFigures, Quantiles
    from tokenbus.producer.client.watching.pool_watch import PoolSight
    from tokenbus.producer.client.worker_status import PageFigures, WorkerStatus
    from tokenbus.producer.gateway.board.watched_pools import PoolSample


def figures_body(sight: PoolSight, samples: Sequence[PoolSample], since_ms: int) -> dict[str, Any]:
    """Return a pool at one moment, with its samples after `since_ms`."""
    figures, status = sight.figures, sight.figures.status
    return {
        "pool": figures.pool,
        "at_ms": figures.at_ms,
        "model": figures.model,
        "paused_for_s": status.paused_for_s,
        "waiting_jobs": status.waiting_jobs,
        "waiting_tokens": status.waiting_tokens,
        "held_jobs": status.held_jobs,
        "oldest_age_s": figures.oldest_age_s,
        "backlog_s": figures.seconds_of_backlog,
        "drain_tokens_per_s": figures.drain_tokens_per_s,
        "generated_per_s": figures.generated_tokens_per_s,
        "prompt_per_s": figures.prompt_tokens_per_s,
        "pages": _pages(figures.pages),
        "priorities": [
            {
                "priority": each.priority,
                "waiting_jobs": each.waiting_jobs,
                "waiting_tokens": each.waiting_tokens,
                "held_jobs": each.held_jobs,
                "oldest_age_s": each.oldest_age_s,
            }
            for each in figures.priorities
        ],
        "lanes": _lanes(figures),
        "workers": [_worker(worker, sight) for worker in figures.workers],
        "lost": [
            {
                "name": name,
                "held_jobs": sight.left.get(name, 0),
                "lost_for_s": max(0, figures.at_ms - sight.lost.get(name, figures.at_ms)) / 1000,
            }
            for name in sorted({*sight.lost, *sight.left})
        ],
        "ended": _ended(sight.ended) if sight.has_ended else None,
        "num_letters": sight.num_letters,
        "num_suspects": sight.num_suspects,
        "kept_bytes": status.kept_bytes,
        "memory": {"used_bytes": sight.memory.used_bytes, "max_bytes": sight.memory.max_bytes},
        "conditions": [
            {"level": each.level.value, "code": each.code, "told": each.told, "cure": each.cure}
            for each in conditions_of(sight)
        ],
        "samples": [_sample(sample) for sample in samples if sample.at_ms > since_ms],
    }


def _lanes(figures: PoolFigures) -> list[dict[str, Any]]:
    return [
        {
            "priority": lane.priority,
            "tenant": lane.tenant,
            "waiting_jobs": lane.waiting_jobs,
            "held_jobs": lane.held_jobs,
            "oldest_age_s": lane.oldest_age_s,
            "waiting_tokens": figures.tenant_waiting_tokens.get(lane.tenant, 0),
        }
        for lane in figures.lanes
    ]


def _worker(worker: WorkerStatus, sight: PoolSight) -> dict[str, Any]:
    since = sight.drained_ms.get(worker.name)
    drained_for_s = None if since is None else max(0, sight.figures.at_ms - since) / 1000
    return {
        "name": worker.name,
        "phase": worker.phase.value,
        "told": worker.phase_told,
        "percent": worker.percent,
        "model": worker.model,
        "version": worker.version,
        "uptime_s": worker.uptime_s,
        "held_jobs": worker.held_jobs,
        "running": worker.running,
        "waiting": worker.waiting,
        "page_size": worker.page_size,
        "pages": _pages(worker.pages),
        "generated_per_s": worker.tokens_per_s,
        "prompt_per_s": worker.prompt_tokens_per_s,
        "drained_for_s": drained_for_s,
        "latencies": {
            name: [each.p50_ms, each.p99_ms, each.count] for name, each in worker.latencies.items()
        },
    }


def _pages(pages: PageFigures | None) -> dict[str, int] | None:
    if pages is None:
        return None
    return {
        "free": pages.free,
        "cached": pages.cached,
        "shared": pages.shared,
        "held": pages.held,
    }


def _ended(ended: EndedFigures) -> dict[str, Any]:
    return {
        "seconds": ended.seconds,
        "num_jobs": ended.num_jobs,
        "jobs_per_s": ended.jobs_per_s,
        "num_resumed": ended.num_resumed,
        "reasons": dict(ended.reasons),
        "latencies": _latencies(ended.latencies),
    }


def _latencies(latencies: Mapping[str, Quantiles]) -> dict[str, list[float]]:
    return {name: [each.p50_ms, each.p95_ms, each.count] for name, each in latencies.items()}


def _sample(sample: PoolSample) -> list[float | None]:
    """Return a sample as the page reads it: in the order of `SAMPLE` in page/series.js."""
    ttft, queue = sample.ttft, sample.queue
    return [
        sample.at_ms,
        sample.generated_per_s,
        sample.prompt_per_s,
        sample.waiting_jobs,
        sample.held_jobs,
        sample.num_ended,
        sample.num_failed,
        None if ttft is None else ttft.p50_ms,
        None if ttft is None else ttft.p95_ms,
        None if queue is None else queue.p50_ms,
        None if queue is None else queue.p95_ms,
    ]
