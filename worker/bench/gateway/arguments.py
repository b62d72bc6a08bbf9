"""The options of `tokenbus bench gateway`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from tokenbus.worker.bench.gateway.command import run_gateway_bench
from tokenbus.worker.bench.gateway.options import ROUTES, GatewayBenchOptions
from tokenbus.worker.bench.option_parser import OptionParser, shown_command

if TYPE_CHECKING:
    from collections.abc import Sequence


def run_bench(argv: Sequence[str]) -> int:
    """Parse a command line, run it and return the exit code: 1 if a stream was not as it should be.

    Raises: SettingsInvalid, EngineError, WorkerError or ProducerError.
    """
    given = vars(build_parser().parse_args(argv))
    shown = shown_command(argv, "tokenbus", "bench", "gateway")
    return run_gateway_bench(GatewayBenchOptions(**given), shown)


# One option an entry, its help below its name.
# fmt: off
def build_parser() -> argparse.ArgumentParser:
    """Describe every option; those that are not given are left out of the namespace."""
    parser = OptionParser(
        prog="tokenbus bench gateway",
        description="Send streams through one gateway process and measure what it adds.",
        epilog="example: tokenbus bench gateway --streams 250 --tokens-per-s 20",
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("--streams", type=int, metavar="N", help="streams open at once (default: 250)")
    add("--tokens-per-s", type=float, metavar="RATE",
        help="tokens a second of each stream (default: 20)")
    add("--duration-s", type=float, metavar="S", help="seconds that are measured (default: 20)")
    add("--ramp-s", type=float, metavar="S",
        help="seconds over which the streams are opened (default: one for each hundred)")
    add("--warm-up-s", type=float, metavar="S",
        help="seconds from then until anything is measured (default: 3)")
    add("--drain-s", type=float, metavar="S",
        help="seconds after which a stream without an end is a fault (default: 60)")
    add("--route", choices=ROUTES, help="what is asked for (default: chat)")
    add("--idle", action="store_true",
        help="let all jobs wait in a paused queue for the duration, and run then (default: run)")
    add("--workers", type=int, metavar="N",
        help="worker processes, which share the streams (default: 1)")
    add("--clients", type=int, metavar="N", help="processes that read the streams (default: 1)")
    add("--native-readers", type=int, metavar="N",
        help="processes that read the same jobs with the native client (default: 1)")
    add("--native-share", type=float, metavar="PERCENT",
        help="percent of the jobs that they read (default: 100)")
    add("--own-core", action="store_true",
        help="give the gateway a core of its own, and all else the others (default: share)")
    add("--redis", metavar="URL", help="a server to use (default: embedded://, a private one)")
    add("--seed", type=int, metavar="N", help="number before the first job's seed (default: 0)")
    add("--json", metavar="FILE", help="write all figures (default: none)")
    return parser
# fmt: on
