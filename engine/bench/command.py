"""`tokenbus bench engine`: run fixed workloads offline and print what they cost.

Stands alone: `python -P -m tokenbus.engine.bench.command` needs torch, triton and transformers.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenbus.engine.bench import measure
from tokenbus.engine.bench.demand import Demand
from tokenbus.engine.bench.figures import FirstTokenReport, WorkloadReport
from tokenbus.engine.bench.heartbeat import Heartbeat
from tokenbus.engine.bench.workloads import ENGINE_WORKLOADS, FIRST_TOKEN_LENS, uniform
from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig, EngineSetting, engine_settings
from tokenbus.engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.models.product import RoutingWatch
    from tokenbus.engine.weights.loader import LoadedModel
    from tokenbus.engine.weights.readers import WeightReader


# Lone prompts, timed to their first token: no workload, for what counts is no rate.
_FIRST_TOKEN = "ttft"  # noqa: S105 # the name of a measurement
# Settings of the engine that are options, with defaults of this command's own: a batch that the
# workloads fill, and tables for sequences of this many tokens, more if a workload has longer ones.
_SETTINGS: dict[str, int | None] = {
    "dtype": None,
    "speculation": None,
    "quantization": None,
    "kv_cache_dtype": None,
    "device": None,
    "tensor_parallel": None,
    "num_threads": None,
    "kv_cache_gib": None,
    "memory_fraction": None,
    "max_num_seqs": 512,
    "max_model_len": 4096,
}


def build_parser() -> argparse.ArgumentParser:
    """Describe every option."""
    parser = argparse.ArgumentParser(
        prog="tokenbus bench engine",
        description="Run fixed workloads in the engine alone, without a queue, and print what they"
        " cost. Stands alone too, as `python -P -m tokenbus.engine.bench.command`.",
        epilog="example: tokenbus bench engine --model smollm2-135m --workload single",
    )
    parser.add_argument(
        "--workload",
        action="append",
        choices=[*sorted(ENGINE_WORKLOADS), _FIRST_TOKEN],
        help="what to run: single, batch8, batch64 are so many sequences; nano256 and its kind so"
        " many of mixed lengths, drawn in other ways with topp and pen; prefill and moon long"
        " prompts; shared groups of 2,048 common tokens; ttft first tokens; may be given several"
        " times (default: nano256)",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODEL",
        help="model: alias, local folder, GGUF file or hub id (required)",
    )
    parser.add_argument(
        "--random-weights",
        action="store_true",
        help="draw the weights, read only the config (default: read them)",
    )
    parser.add_argument(
        "--uniform-routing",
        action="store_true",
        help="mixtures of experts: choose every expert equally often (default: as routers say)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="N", help="runs of each workload (default: 3)"
    )
    for setting in _settings():
        parser.add_argument(setting.option, **setting.option_arguments())
    _add_switches(parser)
    return parser


def _add_switches(parser: argparse.ArgumentParser) -> None:
    """Declare what is left out or printed besides."""
    parser.add_argument(
        "--no-prefix-grouping",
        action="store_true",
        help="read what sequences share once per sequence (default: once for all)",
    )
    parser.add_argument(
        "--no-graphs",
        action="store_true",
        help="launch decode steps one by one (default: as CUDA graphs)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="print device time by kind of kernel (default: do not)",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FOLDER",
        help="write one report per workload into this folder (default: none)",
    )


def _settings() -> list[EngineSetting]:
    """Return the engine's settings that are options here, with the defaults of this command."""
    declared = engine_settings()
    return [
        replace(declared[name], default=default, unset=str(default)) if default else declared[name]
        for name, default in _SETTINGS.items()
    ]


def _given(args: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, and the defaults of this command for the others."""
    values = {name: getattr(args, name) or default for name, default in _SETTINGS.items()}
    if args.max_model_len is None:
        longest = max(map(_longest, args.workload))
        values["max_model_len"] = max(values["max_model_len"] or 0, longest)
    return {name: value for name, value in values.items() if value is not None}


def _longest(name: str) -> int:
    """Return the tokens of the longest sequence of a workload."""
    if name == _FIRST_TOKEN:
        return max(FIRST_TOKEN_LENS) + 1
    return measure.get_workload(name).longest


def run(
    args: argparse.Namespace, backend: Backend | None = None, reader: WeightReader | None = None
) -> int:
    """Run the chosen workloads; return the exit code. For `backend` and `reader` see `load_for`."""
    with Heartbeat("bench engine") as beat:
        return _run(args, backend, reader, beat)


def _run(
    args: argparse.Namespace, backend: Backend | None, reader: WeightReader | None, beat: Heartbeat
) -> int:
    started_at = time.perf_counter()
    args.workload = args.workload or ["nano256"]
    config = EngineConfig(
        model=args.model,
        random_weights=args.random_weights,
        cuda_graphs=not args.no_graphs,
        prefix_grouping=not args.no_prefix_grouping,
        **_given(args),
    )
    if args.uniform_routing and config.tensor_parallel > 1:
        raise EngineError("--uniform-routing goes with one rank: the others route by their logits")
    loaded = load_for(config, backend, reader, beat.note)
    loaded_at = time.perf_counter()
    beat.note("measuring the machine's ceilings")
    ceilings = measure.measure_ceilings(loaded.backend)
    watch = measure.watch_routing(loaded.model, is_uniform=args.uniform_routing)
    if args.uniform_routing and watch is None:
        raise EngineError(f"--uniform-routing: {args.model} has no routers that could be told")
    beat.note("building the engine")
    engine = engine_for(loaded, config, beat.note)
    beat.note("warming up")
    measure.run_workload(engine, uniform("warm-up", 4, 100, 8))
    measure.freeze_startup_objects()
    ready_at = time.perf_counter()
    print(
        f"{args.model}: loaded in {loaded_at - started_at:.1f} s, ready in"
        f" {ready_at - loaded_at:.1f} s, {engine.limits.num_pages} pages of"
        f" {engine.limits.page_size} tokens; ceilings "
        + ", ".join(f"{name} {value:.2f}" for name, value in ceilings.items()),
        flush=True,
    )
    if engine.topology:
        print(f"ranks: {engine.topology}", flush=True)
    for name in args.workload:
        workload = partial(_workload, name=name, watch=watch)
        measured = _first_token if name == _FIRST_TOKEN else workload
        report = measured(args, loaded, engine, ceilings, beat)
        if args.json is not None:
            args.json.mkdir(parents=True, exist_ok=True)
            measure.to_json(report, args.json / f"{Path(args.model).name}-{name}.json")
    engine.close()
    return 0


def _workload(
    args: argparse.Namespace,
    loaded: LoadedModel,
    engine: Engine,
    ceilings: dict[str, float],
    beat: Heartbeat,
    *,
    name: str,
    watch: RoutingWatch | None = None,
) -> WorkloadReport:
    """Run a workload as often as asked and print the best run."""
    machine = measure.describe_machine(loaded.backend)
    report = WorkloadReport(name, args.model, machine, ceilings)
    workload, demand = measure.get_workload(name), Demand.of(loaded)
    for number in range(args.repeats):
        beat.note(f"{name}, run {number + 1} of {args.repeats}")
        engine.reset_prefix_cache()
        report.runs.append(measure.run_workload(engine, workload, demand=demand, watch=watch))
    if args.profile and loaded.backend.has_device_clock:
        beat.note(f"{name}, profiled")
        engine.reset_prefix_cache()
        report.budget_ms, report.kernels_ms = measure.profile_budget(
            partial(measure.run_workload, engine, workload)
        )
    _print(report)
    return report


def _first_token(
    args: argparse.Namespace,
    loaded: LoadedModel,
    engine: Engine,
    ceilings: dict[str, float],
    beat: Heartbeat,
) -> FirstTokenReport:
    """Time the first token of lone prompts and print the medians."""
    beat.note("first tokens of lone prompts")
    times = measure.first_token_ms(engine)
    machine = measure.describe_machine(loaded.backend)
    report = FirstTokenReport(args.model, machine, ceilings, times)
    medians = ", ".join(f"{length}: {ms:.2f}" for length, ms in report.medians_ms().items())
    print(
        f"{_FIRST_TOKEN:>14}  median ms to the first token by prompt tokens: {medians}", flush=True
    )
    return report


def _print(report: WorkloadReport) -> None:
    best = report.best
    rates = " ".join(f"{run.tokens_per_s:.0f}" for run in report.runs)
    steps = " ".join(f"{name} {value:.2f}" for name, value in best.step_ms.items())
    print(
        f"{report.workload:>14}  {best.tokens_per_s:>9.0f} tok/s  (runs: {rates})"
        f"  {best.prompt_tokens_per_s:.0f} prompt tok/s, {best.output_tokens} tokens"
        f" in {best.duration_s:.2f} s, {best.steps} steps,"
        f" ms: {steps}, cached {best.cached_tokens}, preempted {best.preemptions}",
        flush=True,
    )
    if best.achieved is not None and report.ceilings:
        read, flops = best.achieved.read_tb_s, best.achieved.tflop_s
        copy, matmul = report.ceilings["copy_tb_s"], report.ceilings["matmul_tflop_s"]
        print(
            f"{'':>14}  needed at least {read:.2f} TB/s ({read / copy:.0%} of copy) and"
            f" {flops:.0f} TFLOP/s ({flops / matmul:.0%} of matmul)",
            flush=True,
        )
    if best.distinct_experts is not None:
        print(
            f"{'':>14}  experts that got a token, per layer and pass:"
            f" {best.distinct_experts:.1f} on average",
            flush=True,
        )
    if report.budget_ms:
        total = sum(report.budget_ms.values())
        parts = ", ".join(f"{k} {v:.0f} ({v / total:.0%})" for k, v in report.budget_ms.items())
        print(f"{'':>14}  device ms: {parts}", flush=True)


def run_bench(
    argv: Sequence[str], backend: Backend | None = None, reader: WeightReader | None = None
) -> int:
    """Parse a command line, run it and return the exit code.

    Raises: EngineError if the model or a setting is wrong or a run is not equal work.
    """
    return run(build_parser().parse_args(argv), backend, reader)


def main() -> int:
    """Run as a module, where no command line turns errors into exit codes."""
    try:
        return run_bench(sys.argv[1:])
    except EngineError as error:
        print(f"tokenbus: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
