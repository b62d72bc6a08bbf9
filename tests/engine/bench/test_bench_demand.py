"""What a run needs at least, counted token by token."""

from __future__ import annotations

import pytest

from tokenbus.engine.bench.demand import Demand
from tokenbus.engine.bench.figures import RunFigures
from tokenbus.engine.bench.workloads import OfflineWorkload
from tokenbus.engine.kv_cache import AttentionSpec

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
