"""Jobs that a pull takes over pages of FP8: from a device's memory to budget and status."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from models.triton_model import TINY_SIZES, triton_backend
from transformers import LlamaConfig
from workers.parts import a_member, an_engine

from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.weights.loader import LoadedModel, build_model
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.jobs.page_budget import PageBudget
from tokenbus.worker.life import WorkerLife
from tokenbus.worker.pool.status_writer import StatusWriter


def test_a_pull_takes_almost_twice_the_jobs_over_fp8_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same memory holds more pages, and budget and status count those that there are."""
    memory, head_dim = 16 << 20, 128
    monkeypatch.setattr("torch.cuda.mem_get_info", lambda *_: (memory, memory))
    shape: Any = LlamaConfig(**(TINY_SIZES | {"head_dim": head_dim}))
    backend = triton_backend(1, torch.device("cpu"))
    model = build_model(shape, None, backend, dtype=torch.bfloat16, max_model_len=64)
    config = EngineConfig("tiny", max_num_seqs=1)
    taken: dict[str, int] = {}
    shown: dict[str, Any] = {}
    for pages in ("auto", "fp8"):
        chosen = replace(backend, kv_cache_dtype=pages)
        loaded = LoadedModel(model, shape, None, (), 64, "tiny", torch.bfloat16, chosen)
        engine = engine_for(loaded, config)
        stats = engine.stats()
        num_pages = stats.free_pages + stats.evictable_pages
        member = a_member()
        budget = PageBudget(
            member.held_jobs, engine.limits, total_pages=num_pages, reserve_fraction=0.0
        )
        current, _ = an_engine()
        status = StatusWriter(
            member,
            costs=budget.costs,
            engine=current,
            life=WorkerLife(lambda *_: None),
            limits=engine.limits,
        )
        shown[pages] = status.gauges()["total_pages"]
        taken[pages] = 0
        while budget.room().pages >= 4:
            member.held_jobs.take(
                PulledJob(
                    job_id=f"job {taken[pages]}", epoch=1, attempts=0, priority=1, tenant="t",
                    pages=4, head_of_line=False, num_logged=0, remaining_ms=None, request=b"",
                    prefix="",
                )
            )  # fmt: skip
            taken[pages] += 1
        engine.close()
    # A number of bf16 takes two bytes; one of FP8 takes one, and those of a head a scale of four.
    expected = 2 * head_dim / (head_dim + 4)
    assert taken["fp8"] / taken["auto"] == pytest.approx(expected, rel=0.1)
    assert shown["fp8"] / shown["auto"] == pytest.approx(expected, rel=0.05)
