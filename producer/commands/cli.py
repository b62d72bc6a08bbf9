"""The command `tokenbus`: reads arguments, imports the sub-command on use, turns errors into codes.

Exit codes: 0 done, 1 the work failed, 2 wrong input or a missing extra, 130 Ctrl-C.
It is one file because it is one table: every command, and what it imports.
"""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

try:
    import argparse
    import os
    import signal
    import sys
    from contextlib import contextmanager
    from typing import TYPE_CHECKING, Any

    from tokenbus.producer.commands import arguments, gateway_arguments
    from tokenbus.producer.commands.arguments import EXIT_WRONG_INPUT, Parser
    from tokenbus.producer.commands.help_texts import describe
    from tokenbus.producer.terminal import open_standard_streams, say, visible
except KeyboardInterrupt:
    # As `main` would end, which is not there yet.
    raise SystemExit(EXIT_INTERRUPTED) from None

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tokenbus.producer.settings import BusSettings


class _Version(argparse.Action):
    """Looks the version up only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        """Print the version and leave."""
        from importlib.metadata import version

        print(f"tokenbus {version('tokenbus')}", flush=True)
        parser.exit(0)


def build_parser() -> argparse.ArgumentParser:
    """Describe every sub-command; no client and no tensors are imported."""
    parser = Parser(prog="tokenbus")
    parser.add_argument("--version", nargs=0, action=_Version, default=argparse.SUPPRESS,
        help="print the version and exit")  # fmt: skip
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS,
        help="file with settings, in TOML; it stands before the command"
        " (default: that of TOKENBUS_CONFIG, or none)")  # fmt: skip
    commands = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    _add_first(commands)
    _add_jobs(commands)
    _add_watching(commands)
    _add_running(commands)
    _add_checks(commands)
    _add_benches(commands)
    describe(parser)
    return parser


def _add_first(commands: Any) -> None:
    """Describe what a newcomer tries first: a model that answers, with all that it needs."""
    serve = commands.add_parser("serve", help="serve a model over HTTP: server, worker and gateway")
    arguments.add_serve(serve, _parts().values())
    serve.set_defaults(run=_run_serve, extra="worker,gateway")
    chat = commands.add_parser("chat", help="talk with a model in the terminal")
    arguments.add_chat(chat)
    chat.set_defaults(run=_run_chat)
    demo = commands.add_parser("demo", help="two dozen shop jobs through a real model, live")
    arguments.add_demo(demo)
    demo.set_defaults(run=_run_demo)


def _add_jobs(commands: Any) -> None:
    """Describe the commands about jobs."""
    submit = commands.add_parser("submit", help="queue a prompt and stream the answer")
    arguments.add_submit(submit)
    submit.set_defaults(run=_run_submit)
    for command in arguments.add_jobs(commands):
        command.set_defaults(run=_run_jobs, command=command.prog.split()[-1])
    dead = commands.add_parser("dead", help="look at dead letters, retry or delete them")
    arguments.add_dead(dead)
    dead.set_defaults(run=_run_dead)


def _add_watching(commands: Any) -> None:
    """Describe the commands that watch pools."""
    status = commands.add_parser("status", help="tell what waits and which workers live")
    arguments.add_status(status)
    status.set_defaults(run=_run_status)
    top = commands.add_parser("top", help="watch a pool in the terminal: figures, fleet, queue")
    arguments.add_top(top)
    top.set_defaults(run=_run_top, extra="top")
    dashboard = commands.add_parser("dashboard", help="serve the dashboard alone, for a browser")
    gateway_arguments.add_dashboard(dashboard)
    dashboard.set_defaults(run=_run_dashboard, extra="gateway")


def _add_checks(commands: Any) -> None:
    """Describe the commands that look at this machine, its settings, and what would fit."""
    doctor = commands.add_parser("doctor", help="look for what is wrong here, and what to do")
    arguments.add_doctor(doctor)
    doctor.set_defaults(run=_run_doctor)
    config = commands.add_parser("config", help="show the settings of a process")
    arguments.add_config(config)
    config.set_defaults(run=_run_config)
    from tokenbus.engine.config import engine_settings

    size = commands.add_parser("size", help="compute pages, jobs at once and workers of a load")
    arguments.add_size(size, engine_settings())
    size.set_defaults(run=_run_size)


def _add_running(commands: Any) -> None:
    """Describe the processes of a pool, and what is done to them."""
    from tokenbus.engine.config import engine_settings

    worker = commands.add_parser("worker", help="pull jobs and generate until told to stop")
    arguments.add_worker(worker, engine_settings().values())
    worker.set_defaults(run=_run_worker)
    gateway = commands.add_parser("gateway", help="serve OpenAI's HTTP API in front of the pools")
    gateway_arguments.add_gateway(gateway)
    gateway.set_defaults(run=_run_gateway, extra="gateway")
    control = commands.add_parser("control", help="run crons and webhooks, or the arq adapter")
    arguments.add_control(control)
    control.set_defaults(run=_run_control, extra="control")
    keys = commands.add_parser("keys", help="make, list and revoke API keys of gateways")
    gateway_arguments.add_keys(keys)
    keys.set_defaults(run=_run_keys)
    pause = commands.add_parser("pause", help="let workers take no more jobs; running ones go on")
    arguments.add_pool(pause)
    pause.set_defaults(run=_run_pause, is_paused=True)
    resume = commands.add_parser("resume", help="let workers of a paused pool take jobs again")
    arguments.add_pool(resume)
    resume.set_defaults(run=_run_pause, is_paused=False)
    model = commands.add_parser("model", help="fetch a model ahead of its first start")
    model_commands = model.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    pull = model_commands.add_parser("pull", help="fetch a model into the cache folder")
    pull.add_argument("alias", metavar="NAME", help="name of the model (required): smollm2-135m")
    pull.set_defaults(run=_run_pull)


def _add_benches(commands: Any) -> None:
    """Describe the benches."""
    bench = commands.add_parser("bench", help="measure engine, queue or gateway")
    benches = bench.add_subparsers(
        title="commands", metavar="COMMAND", required=True, parser_class=Parser
    )
    # The benches have options of their own, --help among them; the engine's stands alone.
    engine = benches.add_parser("engine", help="fixed workloads without a queue", add_help=False)
    engine.set_defaults(run=_run_bench_engine, takes_rest=True)
    cpu = benches.add_parser("cpu", help="engines side by side on this CPU", add_help=False)
    cpu.set_defaults(run=_run_bench_cpu, takes_rest=True)
    pool = benches.add_parser("pool", help="load through the real queue", add_help=False)
    pool.set_defaults(run=_run_bench_pool, takes_rest=True)
    door = benches.add_parser("gateway", help="streams through the HTTP API", add_help=False)
    door.set_defaults(run=_run_bench_gateway, takes_rest=True)


def _run_demo(args: argparse.Namespace) -> int:
    from tokenbus.worker.demo.command import DemoOptions, run_demo

    given = {name: value for name, value in vars(args).items() if name != "run"}
    return run_demo(DemoOptions(**given))


def _run_worker(args: argparse.Namespace) -> int:
    from tokenbus.worker.settings import WorkerSettings
    from tokenbus.worker.supervisor import run_worker

    given = {name: value for name, value in vars(args).items() if name != "run"}
    settings = WorkerSettings.load(**given)
    if settings.replicas == 1:
        return run_worker(settings)
    from tokenbus.worker.replicas.launcher import run_replicas

    part = _parts()["worker"]
    words = arguments.words_of(part, part, args, arguments.DECIDED_OF_REPLICAS)
    return run_replicas(settings, ("worker", *words))


def _parts() -> dict[str, Parser]:
    """Return the options of the parts that `tokenbus serve` runs."""
    from tokenbus.engine.config import engine_settings

    parts = {name: Parser(add_help=False) for name in ("worker", "gateway")}
    arguments.add_worker(parts["worker"], engine_settings().values())
    gateway_arguments.add_gateway(parts["gateway"])
    return parts


def _run_serve(args: argparse.Namespace) -> int:
    from tokenbus.engine.cache_folder import made_in_cache
    from tokenbus.producer.commands.serve import run_serve
    from tokenbus.producer.serving.told_lines import heard_level
    from tokenbus.worker.replicas.placement import replica_commands
    from tokenbus.worker.settings import WorkerSettings

    whole = Parser(add_help=False)
    arguments.add_serve(whole, _parts().values())
    parts = _parts()
    worker_words = arguments.words_of(parts["worker"], whole, args)
    gateway_words = arguments.words_of(parts["gateway"], whole, args, arguments.DECIDED_OF_GATEWAY)
    known = WorkerSettings.model_fields
    settings = WorkerSettings.load(**{n: value for n, value in vars(args).items() if n in known})
    level = f"--log-level={heard_level(settings.log_level)}"
    command = ("worker", "--model", args.model, "--log-format=json", *worker_words, level)
    workers = replica_commands(settings, command)
    folder = made_in_cache("serve")
    return run_serve(args, workers=workers, gateway=[*gateway_words, level], folder=folder)


def _run_chat(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.chat import run_chat

    return run_chat(args)


def _run_submit(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.submit import run_submit

    return run_submit(args)


def _run_status(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.watching.status import run_status

    return run_status(args.redis, args.pool, here=args.here, as_json=args.json, watch_s=args.watch)


def _run_doctor(args: argparse.Namespace) -> int:
    from tokenbus.worker.doctor.command import run_doctor

    return run_doctor(args.redis, args.pool, args.model, args.device, as_json=args.json)


def _run_size(args: argparse.Namespace) -> int:
    from tokenbus.worker.sizing.command import run_size

    return run_size(args)


def _run_config(args: argparse.Namespace) -> int:
    from tokenbus.worker.doctor.config_command import run_config

    return run_config(args.process, settings_classes(), as_json=args.json, changed=args.changed)


def _run_top(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.watching.top import run_top

    return run_top(args.redis, args.pool, interval_s=args.interval_s, is_once=args.once)


def _run_jobs(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.jobs import run_jobs

    return run_jobs(args)


def _run_pause(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.pause import run_pause

    return run_pause(args.redis, args.pool, is_paused=args.is_paused)


def _run_dead(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.dead_letters import run_dead
    from tokenbus.producer.errors import RequestInvalid

    if args.action != "list" and bool(args.names) == args.all:
        raise RequestInvalid("id", "name the dead letters, or give --all")
    return run_dead(args.redis, args.pool, args.action, args.names, args.limit, args.tenant)


def _run_control(args: argparse.Namespace) -> int:
    from tokenbus.worker.control.service import run_control
    from tokenbus.worker.control.settings import ControlSettings

    beside = ("run", "role", "extra")
    given = {name: value for name, value in vars(args).items() if name not in beside}
    return run_control(args.role, ControlSettings.load(**given))


def _run_gateway(args: argparse.Namespace) -> int:
    from tokenbus.producer.gateway.command import run_gateway
    from tokenbus.producer.gateway.settings import GatewaySettings

    given = {name: value for name, value in vars(args).items() if name not in ("run", "extra")}
    return run_gateway(GatewaySettings.load(**given))


def _run_dashboard(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.watching.dashboard import run_dashboard

    given = {name: value for name, value in vars(args).items() if name not in ("run", "extra")}
    return run_dashboard(given)


def _run_keys(args: argparse.Namespace) -> int:
    from tokenbus.producer.commands.keys import run_keys

    return run_keys(args)


def _run_pull(args: argparse.Namespace) -> int:
    from tokenbus.engine.weights.model_store import pull
    from tokenbus.producer.terminal import ProgressLine

    print(pull(args.alias, ProgressLine(args.alias)))
    return 0


@contextmanager
def _loading_torch(args: argparse.Namespace) -> Iterator[None]:
    """Say what the next seconds go into, unless only help was asked for; Ctrl-C ends the process.

    Amid an import a KeyboardInterrupt is lost where C code calls Python and heeds no exception.
    """
    if not {"-h", "--help"} & set(args.rest):
        say("tokenbus: loading torch")
    before = signal.getsignal(signal.SIGINT)
    if before is signal.default_int_handler:
        signal.signal(signal.SIGINT, lambda *_: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _run_bench_engine(args: argparse.Namespace) -> int:
    with _loading_torch(args):
        from tokenbus.engine.bench.command import run_bench

    return run_bench(args.rest)


def _run_bench_cpu(args: argparse.Namespace) -> int:
    with _loading_torch(args):
        from tokenbus.engine.bench.cpu_command import run_bench

    return run_bench(args.rest)


def _run_bench_pool(args: argparse.Namespace) -> int:
    from tokenbus.worker.bench.arguments import run_bench

    return run_bench(args.rest)


def _run_bench_gateway(args: argparse.Namespace) -> int:
    from tokenbus.worker.bench.gateway.arguments import run_bench

    return run_bench(args.rest)


def _exit_code(error: Exception) -> int | None:
    """Tell an error that was raised on purpose from a bug, which is None."""
    from tokenbus.engine.errors import EngineError, ModelNotFound
    from tokenbus.producer.errors import (
        ChildFailed,
        ClientSettingsInvalid,
        ProducerError,
        RequestInvalid,
        UrlInvalid,
    )
    from tokenbus.worker.errors import EngineStartFailed, SettingsInvalid, WorkerError

    if isinstance(error, ChildFailed) and error.is_wrong_input:
        return EXIT_WRONG_INPUT
    if isinstance(error, EngineStartFailed) and error.kind == ModelNotFound.__name__:
        return EXIT_WRONG_INPUT
    wrong_input = (RequestInvalid, UrlInvalid, ClientSettingsInvalid, SettingsInvalid)
    if isinstance(error, (*wrong_input, ModelNotFound)):
        return EXIT_WRONG_INPUT
    return EXIT_FAILED if isinstance(error, ProducerError | EngineError | WorkerError) else None


def _give_output_up() -> None:
    """Leave an output that takes nothing: Python must not fail again when it flushes at exit.

    Its reader is gone, or its disk full.
    """
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the arguments; leave with code 2 where they are wrong."""
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    if getattr(args, "takes_rest", False):
        args.rest = rest
    elif rest:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    _take_config(vars(args).pop("config", None))
    return args


def _take_config(path: str | None) -> None:
    """Let this command and its children read a file. Raises: ClientSettingsInvalid for a wrong one.

    One that the environment names is checked too.
    """
    if path is None and "TOKENBUS_CONFIG" not in os.environ:
        return
    from tokenbus.producer.config_file import use_config_file
    from tokenbus.worker.doctor.config_command import check_config_file

    if path is not None:
        use_config_file(path)
    check_config_file(settings_classes())


def _tell_mistyped() -> None:
    """Name variables that no process reads, where a setting of nearly that name may be meant."""
    if all(name == "TOKENBUS_REDIS_URL" for name in os.environ if name.startswith("TOKENBUS_")):
        return
    from tokenbus.producer.config_file import mistyped_variables

    names = {name for each in settings_classes().values() for name in each.model_fields}
    for variable, meant in mistyped_variables(names).items():
        say(f"tokenbus: {visible(variable)} is no setting and is left out; is it {meant}?")


def settings_classes() -> dict[str, type[BusSettings]]:
    """Return the settings of each kind of process, by its section of the file."""
    from tokenbus.producer.gateway.settings import GatewaySettings
    from tokenbus.producer.settings import ClientSettings
    from tokenbus.worker.control.settings import ControlSettings
    from tokenbus.worker.settings import WorkerSettings

    found: tuple[type[BusSettings], ...] = (
        ClientSettings,
        WorkerSettings,
        GatewaySettings,
        ControlSettings,
    )
    return {each.section: each for each in found}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    open_standard_streams()
    args = argparse.Namespace()
    try:
        args = _parse(argv)
        if argv is None:
            # A child of another command leaves it to that one.
            _tell_mistyped()
        code: int = args.run(args)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_FAILED
    except ModuleNotFoundError as error:
        if (error.name or "tokenbus").startswith("tokenbus"):
            raise
        extra = getattr(args, "extra", "worker")
        message = f"this command needs {error.name}: pip install 'tokenbus[{extra}]'"
        say(f"tokenbus: {message}")
        return EXIT_WRONG_INPUT
    except Exception as error:
        known = _exit_code(error)
        if known is None and isinstance(error, OSError) and error.errno is not None:
            # The disk is full, a folder not to be written: what the system says is the reason.
            known = EXIT_FAILED
        if known is None:
            raise
        say(f"tokenbus: {visible(str(error))}")
        return known
    finally:
        _give_output_up()
    return code


if __name__ == "__main__":
    sys.exit(main())
