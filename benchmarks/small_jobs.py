"""What the queue costs a small job: jobs/s and CPU of a job of 8 tokens in and 1 out, on two cores.

    python -P benchmarks/small_jobs.py                        # this release, arq and saq
    python -P benchmarks/small_jobs.py --old FOLDER           # and that of a checkout
    python -P benchmarks/small_jobs.py --latency --old FOLDER # one job at a time, on an idle pool

Side by side in one run, in interleaved rounds: this release with a stream a job (each event
checked) and with `results`, the release in a checkout with a stream a job, and arq and saq with
jobs that do nothing, from enqueue to result, with their own workers and clients. Each round has a
server of its own (append-only file, synced once a second), a worker and a client process on the
same two cores; the engine is the null one. The client of both releases is the same code; with
`--bench` each release runs its own `tokenbus bench pool` too, whose readers may differ. arq and saq
are tried with several job limits, poll delays and readers first, and their best are taken; `pip
install arq saq` installs them, and the one that is missing is left out.

It listens on loopback only, and ends by itself. It is one file because what is compared, how often
and how it is told belong together.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Run with -P, python leaves the script's own folder out.
sys.path.insert(0, str(Path(__file__).parent))

from small_jobs_stage import (
    Run,
    SideFailed,
    SideMissing,
    Stage,
    Tree,
    checkout,
    run_bench,
    run_clients,
    server_binary,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

POOL = "small"
WARM_UP = 300
SWEEP_JOBS = 1000
PAUSE_S = 0.01
HERE = Tree("here", {})
KINDS = ("server", "worker", "engine", "publisher", "client", "all")
# The first value of each is the default of the library, or the nearest; one after the other is
# chosen while the others stay.
SWEEPS: dict[str, dict[str, tuple[float, ...]]] = {
    "arq": {
        "poll_s": (0.5, 0.1, 0.02, 0.005),
        "max_jobs": (10, 50, 200, 1000),
        "readers": (16, 1, 64, 256),
    },
    "saq": {
        "poll_s": (0.5, 0.1, 0.02, 0.005),
        "max_jobs": (10, 20, 50, 200),
        "map_size": (100, 25, 500),
        "readers": (8, 2, 32),
    },
}


@dataclass(slots=True)
class Contender:
    """One side of the comparison and its runs."""

    name: str
    library: str
    tree: Tree | None = None
    mode: str = "stream"
    options: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    missing: str = ""

    @property
    def rates(self) -> list[float]:
        """Jobs a second of its runs."""
        return [run.jobs_per_s for run in self.runs]

    @property
    def middle(self) -> Run:
        """The run in the middle."""
        return sorted(self.runs, key=lambda run: run.jobs_per_s)[(len(self.runs) - 1) // 2]


class OutOfTime(Exception):
    """The time limit of the whole benchmark is near."""


class Comparison:
    """Runs contenders until all rounds are done or the time is over."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._binary = server_binary(args.server)
        self._ends_s = time.monotonic() + args.limit_s

    def run(self, contender: Contender, num_jobs: int) -> Run:
        """Run a contender once. Raises: SideMissing, SideFailed, OutOfTime."""
        left_s = self._ends_s - time.monotonic()
        if left_s < self._args.run_limit_s:
            raise OutOfTime
        if contender.library == "bench":
            return self._bench(contender, num_jobs)
        with Stage(self._binary, self._args.run_limit_s) as stage:
            options = {"url": stage.start_server(), "jobs": num_jobs, "warm_up": WARM_UP}
            options |= contender.options
            if contender.library == "tokenbus":
                tree = contender.tree or HERE
                steps = str(stage.folder("steps")) if self._args.latency else None
                stage.start_worker(tree, self._settings(str(options["url"]), steps))
                options |= self._client_options(contender.mode, num_jobs, steps)
                child = stage.start_side("tokenbus-client", options, tree)
            else:
                stage.start_side(f"{contender.library}-worker", options).hear()
                child = stage.start_side(f"{contender.library}-client", options)
            try:
                run = run_clients(stage, [child])
            except SideFailed as error:
                raise SideFailed(f"{contender.name}: {error}\n{stage.workers_said()}") from None
        return _checked(contender, run, num_jobs)

    def sweep(self, contender: Contender) -> None:
        """Choose a library's settings, one after the other."""
        sweep = SWEEPS[contender.library]
        contender.options = {name: values[0] for name, values in sweep.items()}
        for name, values in sweep.items():
            rates: dict[float, float] = {}
            for value in values:
                trial = Contender(contender.name, contender.library)
                trial.options = contender.options | {name: value}
                rates[value] = self.run(trial, min(SWEEP_JOBS, self._args.jobs)).jobs_per_s
            contender.options[name] = max(rates, key=lambda value: rates[value])
            tried = ", ".join(f"{value:g}: {rate:.0f}" for value, rate in rates.items())
            print(f"  {contender.name} {name}: {tried} jobs/s", flush=True)

    def _bench(self, contender: Contender, num_jobs: int) -> Run:
        options = [
            "--arrival", "at-once", "--jobs", str(num_jobs), "--prompt-tokens", "8",
            "--output-tokens", "1", "--num-pages", "20000", "--max-num-seqs", "512",
            "--tokens-per-s", str(self._args.tokens_per_s),
        ]  # fmt: skip
        run = run_bench(contender.tree or HERE, options, self._args.run_limit_s)
        return _checked(contender, run, num_jobs)

    def _settings(self, url: str, steps: str | None) -> dict[str, object]:
        noted = {} if steps is None else {"step_log": steps}
        return {
            "redis_url": url,
            "pool": POOL,
            "engine": "null",
            "log_level": "warning",
            "num_pages": 20_000,
            "max_num_seqs": 512,
            "null_tokens_per_s": self._args.tokens_per_s,
            **noted,
        }

    def _client_options(self, mode: str, num_jobs: int, steps: str | None) -> dict[str, Any]:
        return {
            "pool": POOL,
            "mode": mode,
            "plan": [{"count": num_jobs, "fields": {}}],
            "first": 0,
            "output_tokens": 1,
            "latency": steps is not None,
            "step_log": steps,
            "pause_s": PAUSE_S,
        }


def _checked(contender: Contender, run: Run, num_jobs: int) -> Run:
    """Return a run of which nothing was lost or wrong. Raises: SideFailed."""
    if run.num_wrong or run.num_ended != num_jobs:
        raise SideFailed(
            f"{contender.name}: {run.num_ended} of {num_jobs} ended, {run.num_wrong} wrong"
        )
    return run


def contenders(args: argparse.Namespace, old: Tree | None) -> list[Contender]:
    """Return who takes part."""
    modes = ("stream", "result", "wait") if args.latency else ("stream", "results")
    found = [Contender(f"tokenbus, {mode}", "tokenbus", HERE, mode) for mode in modes]
    if old is not None:
        olds = modes[:2] if args.latency else modes[:1]
        found += [Contender(f"{old.name}, {mode}", "tokenbus", old, mode) for mode in olds]
    if args.bench and not args.latency:
        trees = [HERE] if old is None else [HERE, old]
        found += [Contender(f"{tree.name}, bench pool", "bench", tree) for tree in trees]
    if not args.latency:
        found += [Contender(name, name) for name in args.libraries.split(",") if name]
    return found


def measure(args: argparse.Namespace, sides: list[Contender]) -> None:
    """Run all rounds; who cannot take part says why and is left out."""
    comparison = Comparison(args)
    try:
        for side in sides:
            if side.library in SWEEPS:
                _attempt(side, lambda side=side: comparison.sweep(side))
        for number in range(args.rounds):
            order = sides if number % 2 == 0 else sides[::-1]
            for side in order:
                _attempt(side, lambda side=side: side.runs.append(comparison.run(side, args.jobs)))
            print(f"  round {number + 1} of {args.rounds}: load average {os.getloadavg()[0]:.1f}",
                flush=True)  # fmt: skip
    except OutOfTime:
        print(f"  the time limit of {args.limit_s:g} s is near: no further runs")


def _attempt(side: Contender, call: Any) -> None:
    if side.missing:
        return
    try:
        call()
    except SideMissing as error:
        side.missing = str(error)
        install = f"; `pip install {side.library}`" if side.library != "tokenbus" else ""
        print(f"  {side.name} is left out: {side.missing}{install}", flush=True)


def rate_lines(sides: list[Contender], old: Tree | None) -> Iterator[str]:
    """Yield a line for each side, and what this release makes of the others."""
    for side in sides:
        if side.runs:
            chosen = ", ".join(f"{name} {value:g}" for name, value in side.options.items())
            yield (
                f"{side.name:22} best {max(side.rates):6.0f}  median"
                f" {statistics.median(side.rates):6.0f} jobs/s  {chosen}"
            )
    medians = {side.name: statistics.median(side.rates) for side in sides if side.runs}
    before = medians.get(f"{old.name}, stream") if old is not None else None
    others = [medians[name] for name in SWEEPS if name in medians]
    benches = [medians.get(f"{tree.name}, bench pool") for tree in (HERE, old) if tree is not None]
    if len(benches) > 1 and benches[0] is not None and benches[1] is not None:
        yield f"bench pool: {benches[0] / benches[1]:.2f} x that of {old.name if old else ''}"
    for mode in ("stream", "results"):
        ours = medians.get(f"tokenbus, {mode}")
        if ours is not None and before is not None and old is not None:
            yield f"tokenbus, {mode}: {ours / before:.2f} x {old.name}, stream"
        if ours is not None and others:
            yield f"tokenbus, {mode}: {ours / max(others):.2f} x the better of {', '.join(SWEEPS)}"


def cpu_lines(sides: list[Contender]) -> Iterator[str]:
    """Yield the table of CPU time: a row a side, a column a kind of process."""
    yield f"{'CPU us per job':22}" + "".join(f"{kind:>11}" for kind in KINDS) + "    scripts"
    for side in sides:
        if not side.runs:
            continue
        run, spent = side.middle, side.middle.cpu_us_per_job()
        calls, script_us = run.script_calls / run.num_ended, 1e6 * run.script_cpu_s / run.num_ended
        told = f"{calls:7.2f} calls, {script_us:.0f} us" if run.script_calls else ""
        yield f"{side.name:22}" + "".join(f"{spent[kind]:11.0f}" for kind in KINDS) + told


def latency_lines(sides: list[Contender]) -> Iterator[str]:
    """Yield what is beyond the engine's own time, of all runs together."""
    for side in sides:
        found = sorted(each for run in side.runs for each in run.latencies_ms)
        notes = {out["note"] for run in side.runs for out in run.outcomes if out["note"]}
        if found:
            p50, p99 = (found[int(share * (len(found) - 1))] for share in (0.5, 0.99))
            yield (
                f"{side.name:22} p50 {p50:6.2f}  p99 {p99:6.2f} ms beyond the engine's own,"
                f" n = {len(found)} {', '.join(notes)}"
            )


def machine() -> str:
    """Name what the figures depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text() if cpuinfo.is_file() else ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if "model name" in line]
    return f"{next(iter(names), platform.processor())}, Python {platform.python_version()}"


def as_json(args: argparse.Namespace, sides: list[Contender]) -> dict[str, Any]:
    """Return everything that was measured."""
    return {
        "machine": machine(),
        "arguments": vars(args),
        "load_average": os.getloadavg(),
        "sides": [
            {
                "name": side.name,
                "options": side.options,
                "missing": side.missing,
                "jobs_per_s": side.rates,
                "cpu_us_per_job": [run.cpu_us_per_job() for run in side.runs],
                "script_calls": [run.script_calls / run.num_ended for run in side.runs],
                "latencies_ms": [each for run in side.runs for each in run.latencies_ms],
            }
            for side in sides
        ],
    }


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--old", type=Path, metavar="FOLDER", help="a checkout of the release to compare with")
    add("--old-name", default="old", help="what to call it (default: %(default)s)")
    add("--jobs", type=int, default=4000, help="of each run (default: %(default)s)")
    add("--rounds", type=int, default=5, help="of all sides in turn (default: %(default)s)")
    add("--libraries", default="arq,saq", help="others to run beside (default: %(default)s)")
    add("--tokens-per-s", type=float, default=1000.0,
        help="of each stream of the null engine (default: %(default)s)")  # fmt: skip
    add("--cores", default="0,1", help="the cores that all processes share (default: %(default)s)")
    add("--server", help="the server binary (default: the one that tokenbus finds)")
    add("--bench", action="store_true", help="run `tokenbus bench pool` of each release too")
    add("--latency", action="store_true", help="one job after the other on an idle pool")
    add("--limit-s", type=float, default=900.0, help="time in all (default: %(default)s)")
    add("--run-limit-s", type=float, default=90.0, help="time of one run (default: %(default)s)")
    add("--json", type=Path, help="write all figures")
    args = parser.parse_args()
    if args.latency:
        args.jobs, args.rounds = min(args.jobs, 500), 1
    return args


def main() -> int:
    """Measure and print."""
    args = parse()
    os.sched_setaffinity(0, {int(core) for core in args.cores.split(",")})
    with ExitStack() as stack:
        old = None if args.old is None else stack.enter_context(checkout(args.old_name, args.old))
        sides = contenders(args, old)
        print(f"{machine()}, cores {args.cores}, {args.jobs} jobs a run, 8 tokens in, 1 out")
        try:
            measure(args, sides)
        except SideFailed as error:
            print(f"failed: {error}", file=sys.stderr)
            return 1
    lines = latency_lines(sides) if args.latency else rate_lines(sides, old)
    for line in [*lines, *([] if args.latency else cpu_lines(sides))]:
        print(line)
    if args.json is not None:
        args.json.write_text(json.dumps(as_json(args, sides), indent=1, default=str))
    return 0


if __name__ == "__main__":
    sys.exit(main())
