"""What a run needs at least, counted token by token."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from models.architectures import tiny_sizes
from models.backends import stepwise_backend
from transformers import LlamaConfig, OlmoeConfig

from tokenbus.engine.bench.demand import Demand
from tokenbus.engine.bench.figures import RunFigures
from tokenbus.engine.bench.measure import run_workload, watch_routing
from tokenbus.engine.bench.workloads import OfflineWorkload
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.kv_cache import AttentionSpec
from tokenbus.engine.weights.loader import LoadedModel, build_model

HEADS, KV_HEADS, DIM = 4, 2, 16


def test_demand_is_the_sum_over_every_token_and_layer() -> None:
    """Weights once per step, every visible key and value once per token; windows end the view."""
    windows = (None, 8)
    specs = tuple(
        AttentionSpec(idx, HEADS, KV_HEADS, DIM, 0.25, sliding_window=window)
        for idx, window in enumerate(windows)
    )
    demand = Demand(
        layer_weights=1000, head_weights=300, weight_bytes=2600, kv_bytes=2, specs=specs
    )
    workload = OfflineWorkload("two", ((1,) * 10, (2,) * 5), (4, 7))
    run = RunFigures("two", 11, 15, 0, duration_s=2.0, tokens_per_s=5.5, steps=8, step_ms={},
                     preemptions=0)  # fmt: skip
    read = prompt_reads = 0
    for prompt, length in ((10, 4), (5, 7)):
        for window in windows:
            view = [min(seen, window or seen) for seen in range(1, prompt + length + 1)]
            prompt_reads += sum(view[:prompt])
            read += sum(view[prompt:])
    achieved = demand.achieved(workload, run)
    expected_bytes = 8 * 2600 + read * 2 * KV_HEADS * DIM * 2
    assert achieved.read_tb_s == pytest.approx(expected_bytes / 2.0 / 1e12)
    flops = 2 * (1000 * 26 + 300 * 11) + (read + prompt_reads) * 4 * HEADS * DIM
    assert achieved.tflop_s == pytest.approx(flops / 2.0 / 1e12)


def _loaded(config: LlamaConfig | OlmoeConfig) -> LoadedModel:
    backend = stepwise_backend()
    model = build_model(config, None, backend, dtype=torch.float32, max_model_len=64)
    return LoadedModel(model, config, None, (), 64, "tiny", torch.float32, backend)


def test_a_mixture_is_read_as_far_as_tokens_went() -> None:
    """Of the experts those that got any token, per layer and pass; a token needs its own few."""
    torch.manual_seed(0)
    loaded = _loaded(OlmoeConfig(**tiny_sizes(num_experts=32, num_experts_per_tok=3)))
    watch = watch_routing(loaded.model, is_uniform=True)
    assert watch is not None
    engine = engine_for(loaded, EngineConfig("tiny", num_pages=40, max_num_seqs=8))
    workload = OfflineWorkload("three", ((1, 2, 3), (4, 5, 6), (7, 8, 9)), (5, 5, 5))
    demand = Demand.of(loaded)
    assert demand is not None
    run = run_workload(engine, workload, demand=demand, watch=watch)
    engine.close()
    assert run.distinct_experts is not None
    assert 3 < run.distinct_experts <= 27
    attention, expert = (8 + 2 * 2 + 8) * 8 * 64, 3 * 96 * 64
    assert demand.layer_weights == 4 * (attention + 32 * 64 + 3 * expert)
    assert demand.expert_bytes == 4 * 4 * expert
    assert demand.weight_bytes == 4 * (4 * (attention + 32 * 64) + 199 * 64)
    none_read = demand.achieved(workload, replace(run, distinct_experts=None))
    assert run.achieved is not None
    more = run.achieved.read_tb_s - none_read.read_tb_s
    expected = run.distinct_experts * demand.expert_bytes * run.steps / run.duration_s / 1e12
    assert more == pytest.approx(expected)


def test_a_model_without_routers_has_none_to_watch() -> None:
    """Dense models run as they are."""
    assert watch_routing(_loaded(LlamaConfig(**tiny_sizes())).model, is_uniform=True) is None
