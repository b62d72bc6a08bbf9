"""The options of `tokenbus bench pool`."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from tokenbus.engine.bench.workloads import WORKLOADS
from tokenbus.engine.config import engine_settings
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.bench.command import run_pool_bench
from tokenbus.worker.bench.option_parser import OptionParser, shown_command
from tokenbus.worker.bench.options import (
    ARRIVALS,
    RETAIL_PRIORITIES,
    RETAIL_TENANTS,
    WORKLOAD_NAMES,
    BenchOptions,
)
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

# Options that are settings of the workers, by the name they have there.
# `--itl-target-ms` is that of goodput here.
_ENGINE = {name: s for name, s in engine_settings().items() if name != "itl_target_ms"}
_CLIENT = ClientSettings.model_fields
_WORKER = ("model", "null_tokens_per_s", "null_total_tokens_per_s", *_ENGINE)
_SLO_USERS = (16, 32, 64, 128, 256, 512, 1024)
# What the users of `--slo` send and how long a count is tried, unless options say otherwise.
_SLO_DEFAULTS: dict[str, Any] = {
    "shared_tokens": 4000,
    "prompt_tokens": (60, 60),
    "output_tokens": (150, 150),
    "arrival": "closed",
    "duration_s": 40.0,
    "warm_up_s": 12.0,
    "ramp_s": 5.0,
    "check": False,
}
_OFFLINE_DEFAULTS: dict[str, Any] = {"arrival": "at-once", "repeats": 3, "lag": False}
_RETAIL_DEFAULTS: dict[str, Any] = {
    "arrival": "burst",
    "tenants": RETAIL_TENANTS,
    "priorities": RETAIL_PRIORITIES,
    "output_tokens": (50, 250),
    "duration_s": 180.0,
}


def run_bench(argv: Sequence[str]) -> int:
    """Parse a command line, run it and return the exit code: 1 if anything was lost or wrong.

    Raises: SettingsInvalid, EngineError, WorkerError or ProducerError.
    """
    args = build_parser().parse_args(argv)
    return run_pool_bench(options_of(args), shown_command(argv, "tokenbus", "bench", "pool"))


def build_parser() -> argparse.ArgumentParser:
    """Describe every option; those that are not given are left out of the namespace."""
    parser = OptionParser(
        prog="tokenbus bench pool",
        description="Send load through the real queue and measure it at the readers.",
        epilog="example: tokenbus bench pool --users 64 --tokens-per-s 50 --duration-s 30",
        argument_default=argparse.SUPPRESS,
    )
    _add_load(parser.add_argument_group("load"))
    _add_prompts(parser.add_argument_group("jobs"))
    _add_engine(parser.add_argument_group("engine and queue"))
    _add_measure(parser.add_argument_group("measuring"))
    return parser


def options_of(args: argparse.Namespace) -> BenchOptions:
    """Turn arguments into options; a mode brings its own defaults.

    Raises: SettingsInvalid for combinations without a meaning.
    """
    given = dict(vars(args))
    worker = {name: given.pop(name) for name in _WORKER if name in given}
    defaults: dict[str, Any] = {}
    if given.get("slo"):
        defaults |= _SLO_DEFAULTS | {"slo_users": _SLO_USERS}
    if given.get("workload") == "retail":
        defaults |= _RETAIL_DEFAULTS
    if given.get("workload") in WORKLOADS or given.get("offline_compare"):
        defaults |= _OFFLINE_DEFAULTS if given.get("offline_compare") else {"arrival": "at-once"}
    if "trace" in given:
        defaults["arrival"] = "trace"
    if "users" in given:
        defaults["arrival"] = "closed"
    if "model" in worker:
        defaults["engine"] = "paged"
    options = BenchOptions(worker=worker, **(defaults | given))
    _refuse_nonsense(options)
    return options


def _refuse_nonsense(options: BenchOptions) -> None:
    if options.engine == "paged" and "model" not in options.worker:
        raise SettingsInvalid("--model: the engine `paged` needs one")
    if options.engine == "null" and "model" in options.worker:
        raise SettingsInvalid("--engine: a model runs in the engine `paged`")
    if options.generate_tokenizer and options.engine == "null":
        raise SettingsInvalid("--generate-tokenizer: only for a model")
    _refuse_clashes(options)
    has_number = options.workload in WORKLOADS or options.trace is not None
    if options.arrival == "at-once" and options.jobs is None and not has_number:
        raise SettingsInvalid("--jobs: say how many arrive at once")
    if options.slo and not options.slo_users:
        raise SettingsInvalid("--slo-users: give at least one count")
    if options.load is not None and options.arrival not in ("poisson", "burst", "trace"):
        raise SettingsInvalid("--load: only for the arrivals poisson, burst and trace")


def _refuse_clashes(options: BenchOptions) -> None:
    if options.choice is not None and options.as_text:
        raise SettingsInvalid("--choice: no grammar rules an answer with tools")
    if options.plain_readers and not options.check:
        raise SettingsInvalid("--plain-readers: there is nothing to compare with --no-check")
    if options.messages and options.workload == "retail":
        raise SettingsInvalid("--messages: retail has --as-text for that")
    if options.offline_compare and (options.arrival != "at-once" or options.as_text):
        raise SettingsInvalid("--offline-compare: only for ids that arrive at once")


def _range(text: str) -> tuple[int, int]:
    low, _, high = text.partition("-")
    return int(low), int(high or low)


def _counts(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _shares(text: str) -> tuple[float, ...]:
    shares = tuple(float(part) for part in text.split(","))
    if len(shares) != 3:
        raise ValueError(text)
    return shares


# One option an entry, its help below its name.
# fmt: off
def _add_load(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--arrival", choices=ARRIVALS,
        help="how jobs come (default: poisson; closed with --users, trace with --trace,"
        " at-once for an offline workload, burst for retail)")
    add("--rate", type=float, metavar="JOBS_PER_S",
        help="jobs a second on average, of poisson and of burst in its calm (default: 10)")
    add("--load", type=float, metavar="FACTOR",
        help="measure the capacity first and scale the arrivals to this share (default: do not)")
    add("--jobs", type=int, metavar="N", help="jobs at most (default: no limit)")
    add("--duration-s", type=float, metavar="S",
        help="seconds for which jobs come; at-once and trace have their own (default: 30)")
    add("--burst-factor", type=float, metavar="X",
        help="how many times as many jobs come in a burst (default: 10)")
    add("--burst-s", type=float, metavar="S", help="seconds of a burst (default: 60)")
    add("--calm-s", type=float, metavar="S", help="seconds before each burst (default: 60)")
    add("--users", type=int, metavar="N",
        help="users who send one job after the other (default: 16)")
    add("--ramp-s", type=float, metavar="S",
        help="seconds over which the users begin (default: 0)")
    add("--trace", metavar="FILE",
        help="JSON lines with timestamp_ms, input_length, output_length (default: none)")
    add("--trace-s", type=float, metavar="S", help="seconds of the trace to use (default: 3600)")
    add("--time-scale", type=float, metavar="X",
        help="how much faster than recorded the trace runs (default: 1)")
    add("--length-scale", type=float, metavar="X",
        help="what the trace's lengths are divided by (default: 1)")
    add("--cap", type=int, metavar="TOKENS",
        help="longest prompt and output of the trace in tokens (default: 1000000)")
    add("--peak-factor", type=float, metavar="X",
        help="how much faster the trace runs in its peak (default: 1)")
    add("--peak-at-s", type=float, metavar="S", help="seconds until the peak begins (default: 0)")
    add("--peak-s", type=float, metavar="S", help="seconds that the peak lasts (default: 0)")
    add("--retries", type=int, metavar="N",
        help="how often a refused client comes back after the time it was told (default: 0)")
    add("--patience-s", type=float, metavar="S",
        help="a client that is told to wait for more seconds gives up (default: 600)")


def _add_prompts(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--workload", choices=WORKLOAD_NAMES,
        help="where prompts come from (default: synthetic, ids drawn at random)")
    add("--retail-file", metavar="FILE",
        help="policy, tools and instructions of `retail` as JSON (required for it)")
    add("--as-text", action="store_true",
        help="send retail as messages through the chat template (default: as ids, four"
        " characters each)")
    add("--messages", action="store_true",
        help="send prompts as chat messages of about as many tokens, through the chat template"
        " (default: as ids)")
    add("--choice", type=int, metavar="N",
        help="let each answer be one of N labels, by a grammar; the null engine draws what it likes"
        " (default: free)")
    add("--prompt-tokens", type=_range, metavar="N[-M]",
        help="own tokens of a prompt, drawn evenly from a range (default: 128)")
    add("--output-tokens", type=_range, metavar="N[-M]",
        help="tokens to generate; every job runs to its end (default: 128)")
    add("--shared-tokens", type=int, metavar="N",
        help="tokens before them that a group has in common (default: 0)")
    add("--groups", type=int, metavar="N", help="groups that share a beginning (default: 1)")
    add("--tenants", type=int, metavar="N", help="tenants, in turn (default: 1)")
    add("--priorities", type=_shares, metavar="A,B,C",
        help="shares of the priorities 0, 1, 2 (default: 0,1,0)")
    add("--temperature", type=float, metavar="T", help="sampling temperature (default: 0.6)")
    add("--seed", type=int, metavar="N", help="repeats arrivals and prompts (default: 0)")


def _add_engine(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--engine", choices=("null", "paged"),
        help="null makes tokens up at a set rate (default: null, paged with --model)")
    add("--tokens-per-s", dest="null_tokens_per_s", type=float, metavar="RATE",
        help="tokens a second of each stream of the null engine (default: as fast as it goes)")
    add("--total-tokens-per-s", dest="null_total_tokens_per_s", type=float, metavar="RATE",
        help="tokens a second of all its streams together (default: as fast as it goes)")
    add("--model", metavar="MODEL", help="alias, local folder or hub id (default: none)")
    add("--random-weights", action="store_true",
        help="draw the weights, read only the config (default: read them)")
    add("--generate-tokenizer", action="store_true",
        help="replace the tokenizer by one that has text for every id (default: the model's)")
    add("--redis", metavar="URL", help="a server to use (default: embedded://, a private one)")
    add("--pool", metavar="NAME", help="name of the pool (default: a new one)")
    add("--workers", type=int, metavar="N", help="worker processes (default: 1)")
    add("--max-tenant-tokens", type=int, metavar="N",
        help="waiting tokens of a tenant over which jobs are refused"
        f" (default: {_CLIENT['max_tenant_tokens'].default})")
    add("--max-pool-tokens", type=int, metavar="N",
        help="waiting tokens of all over which jobs are refused"
        f" (default: {_CLIENT['max_pool_tokens'].default})")
    for setting in _ENGINE.values():
        if setting.option:
            add(setting.option, **setting.option_arguments())
    add("--max-batch-tokens", type=int, metavar="TOKENS",
        help="prompt tokens of a step while nobody is streaming"
        f" (default: {_ENGINE['max_batch_tokens'].default})")


def _add_measure(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--readers", type=int, metavar="N", help="reader processes (default: 1)")
    add("--results", action="store_true",
        help="take answers whole, many a call, instead of a stream each (default: streams)")
    add("--plain-readers", type=float, metavar="PERCENT",
        help="percent of the jobs whose own channel a plain SUBSCRIBE reads too (default: 0)")
    add("--check", action=argparse.BooleanOptionalAction,
        help="compare every token with the result (default: check)")
    add("--lag", action=argparse.BooleanOptionalAction,
        help="note in the engine when tokens leave it (default: note)")
    add("--ttft-target-ms", type=float, metavar="MS",
        help="milliseconds to the first token of a good job (default: 1000)")
    add("--itl-target-ms", type=float, metavar="MS",
        help="mean gap in milliseconds between tokens of a good job (default: 50)")
    add("--warm-up-s", type=float, metavar="S",
        help="seconds whose jobs latencies leave out (default: 0)")
    add("--drain-s", type=float, metavar="S",
        help="seconds after the last arrival until what is left counts as lost (default: 60)")
    add("--repeats", type=int, metavar="N",
        help="runs; the report shows the fastest (default: 1, 3 with --offline-compare)")
    add("--offline-compare", action="store_true",
        help="run the same jobs in the same engine without a queue first (default: do not)")
    add("--slo", action="store_true",
        help="find the most users whose p95 is within the targets (default: do not)")
    add("--slo-users", type=_counts, metavar="N,N,…",
        help="counts of users to try, rising (default: 16,32,…,1024)")
    add("--json", metavar="FILE", help="write all figures (default: none)")
    add("--html", metavar="FILE", help="write a page with plots (default: none)")
    add("--plain", action="store_true",
        help="print lines instead of a bar (default: a bar in a terminal)")
# fmt: on


if __name__ == "__main__":
    sys.exit(run_bench(sys.argv[1:]))
