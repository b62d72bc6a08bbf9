"""Measurement of the engine alone: fixed work, exact lengths, beside the machine's ceilings.

Needs torch, triton and transformers only. Every sequence runs to its full length; a run that
delivers another number of tokens is an error, not a figure.
"""

from __future__ import annotations

import gc
import json
import platform
import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.bench.figures import RunFigures, WorkloadReport
from tokenbus.engine.bench.workloads import (
    ENGINE_WORKLOADS,
    FIRST_TOKEN_LENS,
    FIRST_TOKEN_RUNS,
    OfflineWorkload,
    uniform,
)
from tokenbus.engine.errors import EngineError
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.models.product import RoutingWatch
from tokenbus.engine.types import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from tokenbus.engine.bench.demand import Demand
    from tokenbus.engine.bench.figures import FirstTokenReport
    from tokenbus.engine.engine import Engine
    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.types import StepOutput

# Kernels that a profile lists by name.
_NUM_KERNELS = 24


def run_workload(
    engine: Engine,
    workload: OfflineWorkload,
    progress: Callable[[int, int], None] | None = None,
    demand: Demand | None = None,
    watch: RoutingWatch | None = None,
) -> RunFigures:
    """Run all sequences of a workload from one call to the last token.

    With `demand`, the figures say what share of the machine the run achieved; with the `watch` of
    a model's routers, how many experts got any token.

    Raises: EngineError if a sequence ended early, late or with an error.
    """
    before = engine.stats()
    if watch is not None:
        watch.counts.zero_()
    received = [0] * len(workload.prompts)
    step_s: list[float] = []
    started_at = last_at = time.perf_counter()
    for step in _steps(engine, workload):
        for delta in step.deltas:
            if delta.error is not None:
                raise EngineError(f"sequence {delta.request_id}: {delta.error}")
            received[delta.request_id] += len(delta.token_ids)
        now = time.perf_counter()
        step_s.append(now - last_at)
        last_at = now
        if progress is not None:
            progress(sum(received), workload.num_output_tokens)
    duration_s = last_at - started_at
    _check_lengths(workload, received)
    after = engine.stats()
    figures = RunFigures(
        workload=workload.name,
        output_tokens=workload.num_output_tokens,
        prompt_tokens=workload.num_prompt_tokens,
        cached_tokens=after.cached_tokens_total - before.cached_tokens_total,
        duration_s=duration_s,
        tokens_per_s=workload.num_output_tokens / duration_s,
        steps=len(step_s),
        step_ms=_percentiles_ms(step_s),
        preemptions=after.preemptions_total - before.preemptions_total,
        distinct_experts=None if watch is None else _mean_experts(watch),
    )
    return (
        figures if demand is None else replace(figures, achieved=demand.achieved(workload, figures))
    )


def freeze_startup_objects() -> None:
    """Leave all that libraries have made out of collections, as a worker's engine process does.

    A collection that looks at these is a step of 0.2 to 0.4 s.
    """
    gc.collect()
    gc.freeze()


def watch_routing(model: PagedModel, *, is_uniform: bool) -> RoutingWatch | None:
    """Have the routers of a model count, and choose uniformly if asked for; None without routers.

    Call it before steps are captured.
    """
    mixtures = model.tensors.mixtures() if isinstance(model, Decoder) else []
    if not mixtures:
        return None
    counts = torch.zeros(2, dtype=torch.int64, device=mixtures[0].router.device)
    watch = RoutingWatch(counts, is_uniform=is_uniform)
    for mixture in mixtures:
        mixture.watch = watch
    return watch


def _mean_experts(watch: RoutingWatch) -> float:
    """Return how many experts got any token, per mixture and pass."""
    num_experts, num_passes = watch.counts.tolist()
    return float(num_experts / max(1, num_passes))


def _steps(engine: Engine, workload: OfflineWorkload) -> Iterator[StepOutput]:
    """Give the engine every sequence, its place being its id and seed, and step to the last token.

    As `LLM` does: the device begins as soon as there is enough for a step.
    """
    lengths = enumerate(zip(workload.prompts, workload.output_lens, strict=True))
    for idx, (prompt, length) in lengths:
        params = replace(workload.params, max_tokens=length, seed=idx)
        if engine.add(Request(idx, prompt, params)):
            yield engine.step()
    while engine.has_work:
        yield engine.step()


def _check_lengths(workload: OfflineWorkload, received: Sequence[int]) -> None:
    """Refuse a run that was not equal work. Raises: EngineError."""
    wrong = [idx for idx, length in enumerate(workload.output_lens) if received[idx] != length]
    if wrong:
        raise EngineError(
            f"{len(wrong)} sequences have a wrong length, first {wrong[0]}:"
            f" {received[wrong[0]]} tokens instead of {workload.output_lens[wrong[0]]}"
        )


def first_token_ms(
    engine: Engine, lens: Sequence[int] = FIRST_TOKEN_LENS
) -> dict[int, list[float]]:
    """Time lone prompts from the request to the first token, in ms, by their tokens.

    Before what is timed, one prompt of each length runs, so that nothing is compiled meanwhile.

    Raises: EngineError if a prompt gave no token.
    """
    times: dict[int, list[float]] = {}
    for length in lens:
        prompts = uniform("ttft", FIRST_TOKEN_RUNS + 1, length, 1, seed=13).prompts
        runs = []
        for prompt in prompts:
            engine.reset_prefix_cache()
            runs.append(run_workload(engine, OfflineWorkload("ttft", (prompt,), (1,))))
        times[length] = [run.duration_s * 1000 for run in runs[1:]]
    return times


def measure_ceilings(backend: Backend) -> dict[str, float]:
    """Measure copy bandwidth (TB/s, read plus written) and bf16 matmul rate (TFLOP/s).

    By the device's own clock; without one there are no ceilings.
    """
    if not backend.has_device_clock:
        return {}
    device = backend.device
    source = torch.randn(2**29, device=device, dtype=torch.bfloat16)
    target = torch.empty_like(source)
    copy_s = _median_event_s(lambda: target.copy_(source))
    size = 8192
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    matmul_s = _median_event_s(lambda: left @ right)
    return {
        "copy_tb_s": 2 * source.nbytes / copy_s / 1e12,
        "matmul_tflop_s": 2 * size**3 / matmul_s / 1e12,
    }


def describe_machine(backend: Backend) -> dict[str, str]:
    """Name the device and the versions that a figure depends on."""
    import transformers

    found = backend.describe()
    return {
        "device": found.pop("device"),
        "threads": str(torch.get_num_threads()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        **found,
    }


def profile_budget(run: Callable[[], object]) -> tuple[dict[str, float], dict[str, float]]:
    """Return milliseconds of device time over one run by kind, and of the costliest kernels."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        started_at = time.perf_counter()
        run()
        torch.cuda.synchronize()
        wall_ms = (time.perf_counter() - started_at) * 1000
    budget = dict.fromkeys((*_KINDS, "other"), 0.0)
    kernels: dict[str, float] = {}
    for event in profiler.key_averages():
        spent_ms = event.self_device_time_total / 1000
        budget[_kind_of(event.key.lower())] += spent_ms
        kernels[f"{event.key[:100]} x{event.count}"] = spent_ms
    budget["gaps"] = max(0.0, wall_ms - sum(budget.values()))
    costliest = sorted(kernels.items(), key=lambda item: -item[1])[:_NUM_KERNELS]
    return budget, dict(costliest)


def to_json(report: WorkloadReport | FirstTokenReport, path: Path) -> None:
    """Write a report with all its runs."""
    content: dict[str, Any] = asdict(report)
    if isinstance(report, WorkloadReport):
        content["best"] = asdict(report.best)
    path.write_text(json.dumps(content, indent=1) + "\n")


def get_workload(name: str) -> OfflineWorkload:
    """Build a workload by name.

    Raises: EngineError that lists the names.
    """
    if name not in ENGINE_WORKLOADS:
        raise EngineError(f"no workload {name!r}; there are {', '.join(ENGINE_WORKLOADS)}")
    return ENGINE_WORKLOADS[name]()


_KINDS = {
    "attention": ("decode_kernel", "prefill_kernel", "attend", "build_kernel", "flash"),
    "experts": ("_grouped_kernel", "_choose_", "_place_", "_combine_", "_up_kernel", "_down_"),
    "linear": ("gemm", "linear", "matvec", "matmul", "cutlass", "nvjet", "splitk"),
    "norm_rope": ("norm", "rope", "silu", "gated", "embed"),
    "sampling": ("sample", "argmax", "draw", "softmax", "sort", "topk", "reduce"),
}


def _kind_of(kernel_name: str) -> str:
    for kind, words in _KINDS.items():
        if any(word in kernel_name for word in words):
            return kind
    return "other"


def _percentiles_ms(durations_s: Sequence[float]) -> dict[str, float]:
    ordered = sorted(durations_s)
    last = len(ordered) - 1
    return {f"p{q}": ordered[round(last * q / 100)] * 1000 for q in (50, 90, 99)}


def _median_event_s(run: Callable[[], object], repeats: int = 20) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call] # no type in torch
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)) / 1000)
    return sorted(times)[repeats // 2]
