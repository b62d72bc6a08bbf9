"""`tokenbus bench cpu`: engines side by side on the same CPU, interleaved, a process per run.

Prints output tokens/s with 1, 8 and 32 sequences of 128 tokens in and 128 out, prompts included,
and prompt tokens/s of 16 times 512, each with its ratio to `transformers` in the same call.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Sequence  # noqa: TC003 # read by dataclasses
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokenbus.engine import model_store
from tokenbus.engine.bench_contestants import DISTRIBUTIONS, Case, Order
from tokenbus.engine.errors import EngineError
from tokenbus.engine.loader import find_folder

CASES = (
    Case("1 sequence", 1, 128, 128),
    Case("8 sequences", 8, 128, 128),
    Case("32 sequences", 32, 128, 128),
    Case("prefill 16 x 512", 16, 512, 1),
)
QUICK_CASES = (Case("1 sequence", 1, 64, 32), Case("8 sequences", 8, 64, 32))
# The baseline of every ratio.
UNIT = "transformers"
_MAX_LAST_WORDS = 2000
# Columns of the table where no terminal has any.
_WIDTH = 150


@dataclass(frozen=True, slots=True)
class Run:
    """One case of one contestant in one process."""

    contestant: str
    case: str
    seconds: float
    tokens_per_s: float
    token_ids: list[list[int]]


@dataclass(slots=True)
class CpuReport:
    """All runs, in the order they were made, and what they ran on."""

    command: list[str]
    machine: dict[str, str]
    versions: dict[str, str] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)

    def rates(self, contestant: str, case: str) -> list[float]:
        """Return tokens/s of every repeat."""
        return [run.tokens_per_s for run in self.runs
                if (run.contestant, run.case) == (contestant, case)]  # fmt: skip

    def ratio(self, contestant: str, case: str) -> float:
        """Return the best repeat over the best of the unit, NaN if either is missing."""
        ours, unit = self.rates(contestant, case), self.rates(UNIT, case)
        return max(ours) / max(unit) if ours and unit else float("nan")

    def equal_tokens(self, contestant: str, case: str) -> float:
        """Return the share of tokens before the first that differs from the unit's."""
        made = {run.contestant: run.token_ids for run in self.runs if run.case == case}
        if contestant not in made or UNIT not in made:
            return float("nan")
        same = total = 0
        for ours, theirs in zip(made[contestant], made[UNIT], strict=True):
            pairs = enumerate(zip(ours, theirs, strict=True))
            same += next((idx for idx, (a, b) in pairs if a != b), len(theirs))
            total += len(theirs)
        return same / total

    def to_json(self, path: Path) -> None:
        """Write everything but the token ids."""
        content: dict[str, Any] = asdict(self)
        for run in content["runs"]:
            del run["token_ids"]
        path.write_text(json.dumps(content, indent=1) + "\n")


def contestants(only: Sequence[str]) -> list[str]:
    """Return the names of engines that are installed, the unit first.

    Raises: EngineError for a name that is unknown or not installed.
    """
    installed = [name for name in DISTRIBUTIONS if find_spec(DISTRIBUTIONS[name]) is not None]
    for name in only:
        if name not in installed:
            raise EngineError(f"{name} cannot take part; there are {', '.join(installed)}")
    return [name for name in installed if name in only] if only else installed


def run_contestant(order: Order, timeout_s: float) -> tuple[list[Run], dict[str, str]]:
    """Run an order in a new process; return its runs and the versions of what ran.

    Raises: EngineError with the process's last words, or if it made other lengths than asked.
    """
    command = [sys.executable, "-P", "-m", "tokenbus.engine.bench_contestants"]
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
    versions: dict[str, str] = {}
    cases = {case.name: case for case in order.cases}
    for line in done.stdout.splitlines():
        # Libraries print banners between the records.
        record = json.loads(line) if line.startswith("{") else {}
        versions |= record.get("versions", {})
        if "case" in record:
            runs.append(_run_of(order.contestant, cases[record["case"]], record))
    return runs, versions


def _run_of(contestant: str, case: Case, record: dict[str, Any]) -> Run:
    lengths = {len(ids) for ids in record["token_ids"]}
    if lengths != {case.output_len} or len(record["token_ids"]) != case.num_seqs:
        raise EngineError(f"{contestant} made {lengths} tokens instead of {case.output_len}")
    # A single token out: what is measured is the prompt.
    counted = case.prompt_len if case.output_len == 1 else case.output_len
    rate = case.num_seqs * counted / record["seconds"]
    return Run(contestant, case.name, record["seconds"], rate, record["token_ids"])


def print_table(report: CpuReport, cases: Sequence[Case], console: Console) -> None:
    """Print best rates, ratios and how far greedy tokens agree."""
    names = list(dict.fromkeys(run.contestant for run in report.runs))
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("tokens/s, best (all)")
    for name in names:
        table.add_column(f"{name} {report.versions.get(DISTRIBUTIONS[name], '')}", justify="right")
    for case in cases:
        cells = []
        for name in names:
            rates = report.rates(name, case.name)
            every = " ".join(f"{rate:.0f}" for rate in rates)
            cells.append(f"{max(rates):.0f} ({every})")
            if name != UNIT and UNIT in names:
                cells[-1] += f"  {report.ratio(name, case.name):.2f}x"
        table.add_row(case.name, *cells)
    console.print(table)
    for name in names:
        if name == UNIT or UNIT not in names:
            continue
        shares = ", ".join(f"{report.equal_tokens(name, case.name):.0%}" for case in cases)
        console.print(
            f"{name}: tokens before the first that differs from {UNIT}: {shares}", soft_wrap=True
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--model", default="smollm2-135m", metavar="MODEL",
        help="alias, local folder or hub id (default: smollm2-135m)")  # fmt: skip
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16",
        help="number format of weights and pages (default: bfloat16)")  # fmt: skip
    parser.add_argument("--threads", type=int, default=_num_cores(), metavar="N",
        help="compute threads (default: the cores of this process)")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=3, metavar="N",
        help="processes of each engine (default: 3)")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
        help="an engine that takes part; may be given several times (default: those installed)",
    )  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="one repeat of two short cases")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts (default: 0)")
    parser.add_argument("--timeout-s", type=float, default=600.0, metavar="S",
        help="seconds that one process may take (default: 600)")  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE",
        help="write all runs to a file (default: none)")  # fmt: skip


def run_bench(argv: Sequence[str]) -> int:
    """Parse a command line, run it and return the exit code.

    Raises: EngineError if the model, an engine's name or a run is wrong.
    """
    parser = argparse.ArgumentParser(prog="tokenbus bench cpu", description=__doc__)
    add_arguments(parser)
    args = parser.parse_args(argv)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _WIDTH
    cases = QUICK_CASES if args.quick else CASES
    in_alias = args.model in model_store.ALIASES
    folder = model_store.pull(args.model) if in_alias else find_folder(args.model)
    names = contestants(args.only)
    report = CpuReport(["tokenbus", "bench", "cpu", *argv], _describe_machine(args.threads))
    for repeat in range(1 if args.quick else args.repeats):
        for name in names:
            order = Order(name, str(folder), args.dtype, args.threads, cases, args.seed)
            runs, versions = run_contestant(order, args.timeout_s)
            report.runs += runs
            report.versions |= versions
            rates = ", ".join(f"{run.case} {run.tokens_per_s:.0f}" for run in runs)
            console.print(f"{repeat + 1}  {name}: {rates} tokens/s", soft_wrap=True)
    print_table(report, cases, console)
    if args.json is not None:
        report.to_json(args.json)
    return 0


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
