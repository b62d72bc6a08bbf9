"""The command `tokenbus`: reads arguments, imports the sub-command on use, turns errors into codes.

Exit codes: 0 done, 1 the work failed, 2 wrong input or a missing extra, 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_FAILED = 1
EXIT_WRONG_INPUT = 2
EXIT_INTERRUPTED = 130

_POOL_HELP = "name of the pool, the workers that serve one model (default: default)"
_MODEL_HELP = "alias, local folder or hub id (default: smollm2-135m)"
_REDIS_HELP = (
    "redis://, rediss://, unix:// or embedded:///path "
    "(default: redis://127.0.0.1:6379/0, or TOKENBUS_REDIS_URL)"
)


class _Parser(argparse.ArgumentParser):
    """Answers wrong input in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong and leave with code 2."""
        self.exit(EXIT_WRONG_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and leave."""
        from importlib.metadata import version

        print(f"tokenbus {version('tokenbus')}")
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """Describe every sub-command; nothing but argparse is imported."""
    parser = _Parser(prog="tokenbus", description="LLM jobs through a Redis queue, by the busload.")
    parser.add_argument("--version", nargs=0, action=_Version, default=argparse.SUPPRESS,
        help="print the version and exit")  # fmt: skip
    commands = parser.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    _add_demo(commands.add_parser("demo", help="two dozen shop jobs through a real model, live"))
    _add_worker(commands.add_parser("worker", help="pull jobs and generate until told to stop"))
    _add_submit(commands.add_parser("submit", help="queue a prompt and stream the answer"))
    _add_status(commands.add_parser("status", help="tell what waits and which workers live"))
    _add_dead(commands.add_parser("dead", help="look at dead letters, retry or delete them"))
    _add_control(commands.add_parser("control", help="run crons and webhooks, or the arq adapter"))
    model = commands.add_parser("model", help="fetch models")
    model_commands = model.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    pull = model_commands.add_parser("pull", help="fetch a model into the cache folder")
    pull.add_argument("alias", help="name of the model (required): smollm2-135m")
    pull.set_defaults(run=_run_pull)
    bench = commands.add_parser("bench", help="measure")
    benches = bench.add_subparsers(metavar="COMMAND", required=True, parser_class=_Parser)
    # The benches have options of their own, --help among them; the engine's stands alone.
    engine = benches.add_parser("engine", help="fixed workloads without a queue", add_help=False)
    engine.set_defaults(run=_run_bench_engine, takes_rest=True)
    cpu = benches.add_parser("cpu", help="engines side by side on this CPU", add_help=False)
    cpu.set_defaults(run=_run_bench_cpu, takes_rest=True)
    pool = benches.add_parser("pool", help="load through the real queue", add_help=False)
    pool.set_defaults(run=_run_bench_pool, takes_rest=True)
    return parser


# One option an entry, its help below its name.
# fmt: off
def _add_demo(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--model", default="smollm2-135m", metavar="MODEL", help=_MODEL_HELP)
    add("--jobs", type=int, default=24, metavar="N", help="jobs sent at once (default: 24)")
    add("--max-tokens", type=int, default=128, metavar="N",
        help="longest answer in tokens (default: 128)")
    add("--threads", type=int, metavar="N",
        help="compute threads of the bus and of the taxi (default: the cores of this process)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16",
        help="number format of the weights, for both (default: bfloat16)")
    add("--num-pages", type=int, metavar="N",
        help="KV pages of the bus (default: enough for every job at once)")
    add("--redis", default="embedded://", metavar="URL",
        help="a server to use (default: embedded://, started for the demo)")
    add("--taxi-jobs", type=int, default=9, metavar="N",
        help="jobs that the taxi drives, from the first on (default: 9)")
    add("--skip-taxi", action="store_true", help="leave the comparison out (default: compare)")
    add("--plain", action="store_true",
        help="print lines instead of the live view (default: live in a terminal)")
    add("--json", metavar="FILE", help="write the figures to a file as JSON (default: none)")
    add("--timeout-s", type=float, default=900.0, metavar="S",
        help="seconds after which the bus ride is given up (default: 900)")
    parser.set_defaults(run=_run_demo)


def _add_worker(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--redis", dest="redis_url", metavar="URL", help=_REDIS_HELP)
    add("--pool", metavar="NAME", help=_POOL_HELP)
    add("--model", metavar="MODEL", help=_MODEL_HELP)
    add("--engine", choices=("paged", "null"),
        help="paged runs a model, null emits made-up tokens to try a queue (default: paged)")
    add("--dtype", choices=("auto", "float32", "bfloat16", "float16"),
        help="number format of weights and pages (default: auto, what the model was saved in)")
    add("--quantization", choices=("int8",),
        help="round weights to a byte each on a CPU, for few jobs at a time (default: off)")
    add("--device", metavar="NAME", help="auto, cpu or cuda[:index] (default: auto)")
    add("--threads", dest="num_threads", type=int, metavar="N",
        help="compute threads on a CPU (default: one per core)")
    add("--page-size", type=int, metavar="TOKENS",
        help="tokens per KV page (default: 16 on a CPU, 64 on a GPU)")
    add("--num-pages", type=int, metavar="N", help="KV pages (default: from free memory)")
    add("--kv-cache-gib", type=float, metavar="GIB",
        help="memory for KV pages on a CPU in GiB (default: 2)")
    add("--memory-fraction", type=float, metavar="SHARE",
        help="share of a GPU's memory for weights and pages, 0.05 to 0.98 (default: 0.9)")
    add("--max-num-seqs", type=int, metavar="N", help="largest running batch (default: 256)")
    add("--max-model-len", type=int, metavar="TOKENS",
        help="longest prompt plus output in tokens (default: the model's own limit)")
    add("--itl-target-ms", type=float, metavar="MS",
        help="longest gap that a prefill may put between streamed tokens (default: none)")
    add("--drain-deadline-s", type=float, metavar="S",
        help="seconds that running jobs get to end after Ctrl-C (default: 30)")
    add("--lease-ttl-s", type=float, metavar="S",
        help="seconds without a sign of life until others take the jobs over (default: 5)")
    add("--log-level", choices=("debug", "info", "warning", "error"),
        help="least severe event that is logged (default: info)")
    add("--log-format", choices=("auto", "json", "console"),
        help="form of the log lines (default: auto, json unless in a terminal)")
    add("--publishers", metavar="N",
        help="processes that write tokens to the server, 0 = the worker itself (default: auto)")
    add("--metrics-port", type=int, metavar="PORT",
        help="serve Prometheus metrics on this port of the loopback (default: none)")
    parser.set_defaults(run=_run_worker)


def _add_submit(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("prompt", help="what to answer (required); - reads standard input")
    add("--redis", metavar="URL", help=_REDIS_HELP)
    add("--pool", default="default", metavar="NAME", help=_POOL_HELP)
    add("--system", metavar="TEXT", help="system prompt (default: the model's own, if any)")
    add("--raw", action="store_true",
        help="continue the prompt as it is, without a chat template (default: chat)")
    add("--max-tokens", type=int, default=256, metavar="N",
        help="longest answer in tokens (default: 256)")
    add("--temperature", type=float, default=0.0, metavar="T",
        help="spread of the sampling, 0 = greedy (default: 0)")
    add("--top-k", type=int, default=0, metavar="K",
        help="draw from the K likeliest tokens, 0 = all (default: 0)")
    add("--top-p", type=float, default=1.0, metavar="P",
        help="draw from the likeliest tokens that make up this share (default: 1)")
    add("--seed", type=int, metavar="N", help="seed of the sampling (default: drawn)")
    add("--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given several times (default: none)")
    add("--tenant", default="default", metavar="NAME",
        help="whose share of the pool the job uses (default: default)")
    add("--priority", type=int, default=1, metavar="N",
        help="0 goes first, 2 last (default: 1)")
    add("--deadline-s", type=float, metavar="S",
        help="seconds from now after which the answer is useless (default: none)")
    add("--idempotency-key", metavar="KEY",
        help="the same key and request give the same job (default: none)")
    add("--callback-url", metavar="URL",
        help="POST the end of the job there, by tokenbus control (default: nowhere)")
    add("--json", action="store_true",
        help="print each event as a line of JSON (default: the text)")
    parser.set_defaults(run=_run_submit)


def _add_status(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--redis", metavar="URL", help=_REDIS_HELP)
    add("--pool", default="default", metavar="NAME", help=_POOL_HELP)
    add("--here", action="store_true",
        help="fail unless a worker of this host lives (default: a worker anywhere)")
    parser.set_defaults(run=_run_status)


def _add_dead(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="action", metavar="COMMAND", required=True,
        parser_class=_Parser)
    listing = commands.add_parser("list", help="print a line per dead letter, the newest first")
    listing.add_argument("--limit", type=int, default=50, metavar="N",
        help="letters at most (default: 50)")
    listing.set_defaults(names=[])
    show = commands.add_parser("show", help="print dead letters with their requests")
    retry = commands.add_parser("retry", help="send dead letters again as new jobs")
    purge = commands.add_parser("purge", help="delete dead letters")
    for command in (show, retry, purge):
        command.set_defaults(limit=0)
        command.add_argument("names", nargs="*", metavar="ID",
            help="entry ids or job ids (required unless --all)")
        command.add_argument("--all", action="store_true",
            help="take every dead letter (default: those named)")
    for command in (listing, show, retry, purge):
        command.add_argument("--redis", metavar="URL", help=_REDIS_HELP)
        command.add_argument("--pool", default="default", metavar="NAME", help=_POOL_HELP)
    parser.set_defaults(run=_run_dead)


def _add_control(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("role", nargs="?", choices=("service", "adapter", "check"), default="service",
        help="service runs crons and webhooks, adapter runs arq's generate jobs on the pool,"
        " check tells whether a service lives (default: service)")
    add("--redis", dest="redis_url", metavar="URL", help=_REDIS_HELP)
    add("--arq-redis", dest="arq_redis_url", metavar="URL",
        help="where arq keeps its jobs (default: the server of the pool)")
    add("--pool", metavar="NAME", help=_POOL_HELP)
    add("--crons", metavar="FILE",
        help="table of jobs to submit at set times, in TOML (default: none)")
    add("--webhook-keys", dest="webhook_keys_file", metavar="FILE",
        help="signing keys by tenant, in JSON (default: TOKENBUS_WEBHOOK_KEYS)")
    add("--queue", dest="adapter_queue", metavar="NAME",
        help="arq queue of the adapter (default: arq:tokenbus, with :POOL unless it is default)")
    add("--max-jobs", dest="adapter_max_jobs", type=int, metavar="N",
        help="jobs that the adapter waits for at once (default: 1000)")
    add("--poll-delay-s", dest="adapter_poll_delay_s", type=float, metavar="S",
        help="seconds between the adapter's looks into its queue (default: 0.02)")
    add("--job-timeout-s", dest="adapter_job_timeout_s", type=float, metavar="S",
        help="seconds until arq gives a job up, past every deadline (default: 3600)")
    add("--log-level", choices=("debug", "info", "warning", "error"),
        help="least severe event that is logged (default: info)")
    add("--log-format", choices=("auto", "json", "console"),
        help="form of the log lines (default: auto, json unless in a terminal)")
    parser.set_defaults(run=_run_control, extra="control")
# fmt: on


def _run_demo(args: argparse.Namespace) -> int:
    from tokenbus.worker.demo.command import DemoOptions, run_demo

    given = {name: value for name, value in vars(args).items() if name != "run"}
    return run_demo(DemoOptions(**given))


def _run_worker(args: argparse.Namespace) -> int:
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import run_worker

    given = {name: value for name, value in vars(args).items() if name != "run"}
    return run_worker(WorkerSettings.load(**given))


def _run_submit(args: argparse.Namespace) -> int:
    from tokenbus.producer.submit import run_submit

    return run_submit(args)


def _run_status(args: argparse.Namespace) -> int:
    from tokenbus.producer.status import run_status

    return run_status(args.redis, args.pool, here=args.here)


def _run_dead(args: argparse.Namespace) -> int:
    from tokenbus.producer.dead_letters import run_dead
    from tokenbus.producer.errors import RequestInvalid

    if args.action != "list" and bool(args.names) == args.all:
        raise RequestInvalid("id", "name the dead letters, or give --all")
    return run_dead(args.redis, args.pool, args.action, args.names, args.limit)


def _run_control(args: argparse.Namespace) -> int:
    from tokenbus.worker.control.service import run_control
    from tokenbus.worker.control.settings import ControlSettings

    beside = ("run", "role", "extra")
    given = {name: value for name, value in vars(args).items() if name not in beside}
    return run_control(args.role, ControlSettings.load(**given))


def _run_pull(args: argparse.Namespace) -> int:
    from tokenbus.engine.model_store import pull
    from tokenbus.producer.terminal import ProgressLine

    print(pull(args.alias, ProgressLine(args.alias)))
    return 0


def _run_bench_engine(args: argparse.Namespace) -> int:
    from tokenbus.engine.bench_cli import run_bench

    return run_bench(args.rest)


def _run_bench_cpu(args: argparse.Namespace) -> int:
    from tokenbus.engine.bench_cpu import run_bench

    return run_bench(args.rest)


def _run_bench_pool(args: argparse.Namespace) -> int:
    from tokenbus.worker.bench.arguments import run_bench

    return run_bench(args.rest)


def _exit_code(error: Exception) -> int | None:
    """Tell an error that was raised on purpose from a bug of ours, which is None."""
    from tokenbus.engine.errors import EngineError, ModelNotFound
    from tokenbus.producer.errors import ProducerError, RequestInvalid, UrlInvalid
    from tokenbus.worker.errors import EngineStartFailed, SettingsInvalid, WorkerError

    if isinstance(error, EngineStartFailed) and error.kind == ModelNotFound.__name__:
        return EXIT_WRONG_INPUT
    if isinstance(error, RequestInvalid | UrlInvalid | SettingsInvalid | ModelNotFound):
        return EXIT_WRONG_INPUT
    return EXIT_FAILED if isinstance(error, ProducerError | EngineError | WorkerError) else None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if getattr(args, "takes_rest", False):
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        code: int = args.run(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output is gone; Python must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if (error.name or "tokenbus").startswith("tokenbus"):
            raise
        extra = getattr(args, "extra", "worker")
        message = f"this command needs {error.name}: pip install 'tokenbus[{extra}]'"
        print(f"tokenbus: {message}", file=sys.stderr)
        return EXIT_WRONG_INPUT
    except Exception as error:
        known = _exit_code(error)
        if known is None:
            raise
        print(f"tokenbus: {error}", file=sys.stderr)
        return known
    return code


if __name__ == "__main__":
    sys.exit(main())
