"""`tokenbus bench cpu`: engines side by side on the same CPU, interleaved, a process per run.

Engines that are not installed are left out. Prints output tokens/s with 1, 8 and 32 sequences of
128 tokens in and 128 out, prompts included, and prompt tokens/s of 16 times 512, each with its
ratio to `transformers` in the same call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tokenbus.engine.bench.contestants import PACKAGES
from tokenbus.engine.bench.cpu_report import CpuReport, Run, print_table
from tokenbus.engine.bench.heartbeat import Heartbeat
from tokenbus.engine.bench.order import Case, ContestOrder
from tokenbus.engine.errors import EngineError
from tokenbus.engine.weights import model_store
from tokenbus.engine.weights.model_place import find_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

CASES = (
    Case("1 sequence", 1, 128, 128),
    Case("8 sequences", 8, 128, 128),
    Case("32 sequences", 32, 128, 128),
    Case("prefill 16 x 512", 16, 512, 1),
)
QUICK_CASES = (Case("1 sequence", 1, 64, 32), Case("8 sequences", 8, 64, 32))
_LLAMA_CPP = "llama.cpp"
_MAX_LAST_WORDS = 2000
# Columns of the table where no terminal has any.
_WIDTH = 150


def contestants(only: Sequence[str]) -> list[str]:
    """Return the names of engines that are installed, the unit first.

    Raises: EngineError for a name that is unknown or not installed.
    """
    installed = [name for name in PACKAGES if find_spec(PACKAGES[name].module) is not None]
    for name in only:
        if name not in installed:
            raise EngineError(f"{name} cannot take part; there are {', '.join(installed)}")
    return [name for name in installed if name in only] if only else installed


def run_contestant(order: ContestOrder, timeout_s: float, report: CpuReport) -> list[Run]:
    """Run an order in a new process; return its runs and report them.

    Raises: EngineError with the process's last words, or if it made other lengths than asked.
    """
    command = [sys.executable, "-P", "-m", "tokenbus.engine.bench.contestants"]
    with tempfile.TemporaryFile("w+", errors="replace") as stderr:
        try:
            done = subprocess.run(
                command, input=order.to_json(), stdout=subprocess.PIPE, stderr=stderr, text=True,
                timeout=timeout_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise EngineError(f"{order.contestant} took longer than {timeout_s:.0f} s") from error
        if done.returncode:
            stderr.seek(0)
            words = stderr.read().strip()[-_MAX_LAST_WORDS:]
            raise EngineError(f"{order.contestant} ended with {done.returncode}: {words}")
    runs: list[Run] = []
    cases = {case.name: case for case in order.cases}
    for line in done.stdout.splitlines():
        # Libraries print banners between the records.
        record = json.loads(line) if line.startswith("{") else {}
        report.versions |= record.get("versions", {})
        if record.get("remark"):
            report.remarks[order.contestant] = record["remark"]
        if "case" in record:
            runs.append(_run_of(order.contestant, cases[record["case"]], record))
    report.runs += runs
    return runs


def _run_of(contestant: str, case: Case, record: dict[str, Any]) -> Run:
    lengths = {len(ids) for ids in record["token_ids"]}
    if lengths != {case.output_len} or len(record["token_ids"]) != case.num_seqs:
        raise EngineError(f"{contestant} made {lengths} tokens instead of {case.output_len}")
    # A single token out: what is measured is the prompt.
    counted = case.prompt_len if case.output_len == 1 else case.output_len
    rate = case.num_seqs * counted / record["seconds"]
    return Run(contestant, case.name, record["seconds"], rate, record["token_ids"])


def build_parser() -> argparse.ArgumentParser:
    """Describe every option."""
    parser = argparse.ArgumentParser(
        prog="tokenbus bench cpu",
        description="Run engines side by side on this CPU, a process per run, and print tokens/s."
        " Those that are not installed are left out; each ratio is to `transformers` in the same"
        " call.",
        epilog="example: tokenbus bench cpu --quick",
    )
    parser.add_argument("--model", default="smollm2-135m", metavar="MODEL",
        help="model: alias, local folder or hub id (default: smollm2-135m)")  # fmt: skip
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="number format of weights and pages (default: bfloat16)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=_num_cores(), metavar="N",
        help="compute threads (default: the cores of this process)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, metavar="N",
        help="processes of each engine (default: 3)")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
        help="an engine that takes part; may be given several times (default: those installed)",
    )  # fmt: skip
    parser.add_argument("--gguf", type=Path, metavar="FILE",
        help="the model for llama.cpp (default: the file that an alias comes from)")  # fmt: skip
    parser.add_argument("--quick", action="store_true",
        help="one repeat of two short cases (default: all of four)")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N",
        help="repeats the prompts (default: 0)")  # fmt: skip
    parser.add_argument("--timeout-s", type=float, default=600.0, metavar="S",
        help="seconds that one process may take (default: 600)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE",
        help="write all runs to a file (default: none)")  # fmt: skip
    return parser


def run_bench(argv: Sequence[str]) -> int:
    """Parse a command line, run it and return the exit code.

    Raises: EngineError if the model, an engine's name or a run is wrong.
    """
    args = build_parser().parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    cases = QUICK_CASES if args.quick else CASES
    report = CpuReport(["tokenbus", "bench", "cpu", *argv], _describe_machine(args.threads))
    with Heartbeat("bench cpu") as beat:
        _contest(args, cases, report, console, beat)
    print_table(report, cases, console)
    if args.json is not None:
        report.to_json(args.json)
    return 0


def _contest(
    args: argparse.Namespace,
    cases: tuple[Case, ...],
    report: CpuReport,
    console: Console,
    beat: Heartbeat,
) -> None:
    """Let everyone run every case, as often as asked, one process after the other."""
    names = contestants(args.only)
    beat.note(f"looking for {args.model}")
    is_alias = args.model in model_store.ALIASES
    folder = model_store.pull(args.model, beat.note) if is_alias else find_folder(args.model)
    gguf = _gguf(args, names, console, beat)
    num_repeats = 1 if args.quick else args.repeats
    for repeat in range(num_repeats):
        for number, name in enumerate(names):
            run = repeat * len(names) + number + 1
            beat.note(f"run {run} of {num_repeats * len(names)}: {name}, {len(cases)} cases")
            order = ContestOrder(
                name, str(folder), args.dtype, args.threads, cases, args.seed, gguf
            )
            runs = run_contestant(order, args.timeout_s, report)
            rates = ", ".join(f"{run.case} {run.tokens_per_s:.0f}" for run in runs)
            console.print(f"{repeat + 1}  {name}: {rates} tokens/s", soft_wrap=True)


def _gguf(
    args: argparse.Namespace, names: list[str], console: Console, beat: Heartbeat
) -> str | None:
    """Return llama.cpp's file; without one it leaves the list, unless it was asked for."""
    if _LLAMA_CPP not in names:
        return None
    if args.gguf is not None:
        return str(args.gguf)
    if args.model in model_store.ALIASES:
        return str(model_store.pull_gguf(args.model, beat.note))
    if args.only:
        raise EngineError(f"{_LLAMA_CPP} needs a GGUF file of {args.model}: --gguf FILE")
    names.remove(_LLAMA_CPP)
    console.print(f"{_LLAMA_CPP} is left out: it needs --gguf FILE")
    return None


def _num_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _describe_machine(num_threads: int) -> dict[str, str]:
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = cpuinfo.read_text(errors="replace").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        name = models[0] if models else name
    return {
        "cpu": name,
        "cores": str(_num_cores()),
        "threads": str(num_threads),
        "python": platform.python_version(),
        "system": platform.platform(),
    }
