"""The command line: help, exit codes and one-sentence errors."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import signal
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from house.help_faults import faults_of
from patience import PATIENCE_S

from tokenbus.engine.config import EngineConfig, engine_settings
from tokenbus.engine.errors import ModelBroken, ModelNotFound
from tokenbus.producer.commands import cli
from tokenbus.producer.errors import RequestInvalid, ServerUnreachable
from tokenbus.producer.gateway.settings import GatewaySettings
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.bench import arguments as pool_bench
from tokenbus.worker.bench.gateway import arguments as gateway_bench
from tokenbus.worker.demo.command import DemoOptions
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

NOWHERE = "redis://:secret@127.0.0.1:1/0"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield a parser and those of its sub-commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from _parsers(child)


PARSERS = {parser.prog: parser for parser in _parsers(cli.build_parser())}


def _options(command: str) -> dict[str, argparse.Action]:
    return {a.dest: a for a in PARSERS[command]._actions if a.dest != "help"}


COMMAND = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli"]


def _run(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *args], capture_output=True, text=True, timeout=PATIENCE_S)


def test_commands_are_those_of_the_readme() -> None:
    """Every command has its own help."""
    assert set(PARSERS) == {
        "tokenbus", "tokenbus demo", "tokenbus worker", "tokenbus serve", "tokenbus chat",
        "tokenbus submit", "tokenbus status", "tokenbus doctor", "tokenbus config",
        "tokenbus size",
        "tokenbus top", "tokenbus dashboard",
        "tokenbus list", "tokenbus show", "tokenbus result", "tokenbus follow", "tokenbus cancel",
        "tokenbus pause", "tokenbus resume",
        "tokenbus dead", "tokenbus dead list", "tokenbus dead show", "tokenbus dead retry",
        "tokenbus dead purge", "tokenbus control", "tokenbus model", "tokenbus model pull",
        "tokenbus gateway", "tokenbus keys", "tokenbus keys create", "tokenbus keys list",
        "tokenbus keys revoke",
        "tokenbus bench", "tokenbus bench cpu", "tokenbus bench engine", "tokenbus bench pool",
        "tokenbus bench gateway",
    }  # fmt: skip


GROUPS = {"tokenbus", "tokenbus dead", "tokenbus keys", "tokenbus model", "tokenbus bench"}


@pytest.mark.parametrize("command", [c for c in PARSERS if c not in GROUPS])
def test_every_option_has_help_with_its_default(command: str) -> None:
    """Each option says what it does, and its default or that it is required."""
    for action in _options(command).values():
        assert action.help, action.dest
        assert re.search(r"\((default|required)", action.help), action.dest


# The benches but those of the engine, which need torch and are in tests/engine/bench.
HELPED = [parser for parser in PARSERS.values() if parser.add_help]
HELPED += [pool_bench.build_parser(), gateway_bench.build_parser()]


@pytest.mark.parametrize("parser", HELPED, ids=lambda parser: parser.prog)
def test_help_is_enough_for_a_newcomer(parser: argparse.ArgumentParser) -> None:
    """It says what the command is for, shows an example that parses, and units with numbers."""
    assert faults_of(parser) == []
    words = shlex.split(str(parser.epilog).rpartition("tokenbus ")[2])
    args, rest = cli.build_parser().parse_known_args(words)
    assert getattr(args, "takes_rest", False) or not rest
    if args.run.__name__.startswith("_run_bench") and parser not in PARSERS.values():
        parser.parse_args(rest)


def test_faults_of_a_help_are_seen() -> None:
    """No purpose, no example, a number of nobody knows what: each is told."""
    parser = argparse.ArgumentParser(prog="tokenbus planted")
    parser.add_argument("--wait-s", type=float, help="how long (default: 3)")
    parser.add_argument("--gap-ms", type=int, metavar="MS", help="milliseconds between")
    assert [fault.partition(":")[0] for fault in faults_of(parser)] == [
        "purpose",
        "example",
        "--wait-s",
        "--gap-ms",
    ]


@pytest.mark.parametrize("command", ["tokenbus demo", "tokenbus submit", "tokenbus size"])
def test_help_names_the_default_that_is_used(command: str) -> None:
    """A default in the help is the parser's own."""
    for action in _options(command).values():
        if isinstance(action.default, int | float) and not isinstance(action.default, bool):
            assert f"(default: {action.default:g})" in str(action.help)


def test_worker_help_names_the_defaults_of_the_settings() -> None:
    """Options of the worker are settings, and the numbers in their help are those in force."""
    fields = WorkerSettings.model_fields
    engine = EngineConfig(model="")
    for name, action in _options("tokenbus worker").items():
        assert name in fields
        assert action.default is None, "an option that is not given leaves the variable in force"
        default = fields[name].default
        default = getattr(engine, name, None) if default is None else default
        if isinstance(default, int | float | str) and name not in {"redis_url", "dtype"}:
            text = default if isinstance(default, str) else f"{default:g}"
            assert re.search(rf"\(default: {re.escape(text)}[,)]", str(action.help)), name
    assert ClientSettings.model_fields["redis_url"].default in str(
        _options("tokenbus worker")["redis_url"].help
    )


def test_gateway_help_names_the_defaults_of_the_settings() -> None:
    """Options of the gateway are settings, and the numbers in their help are those in force."""
    fields = GatewaySettings.model_fields
    for name, action in _options("tokenbus gateway").items():
        assert action.default is None, "an option that is not given leaves the variable in force"
        default = fields[name].default
        if isinstance(default, int | float | str) and not isinstance(default, bool):
            text = default if isinstance(default, str) else f"{default:g}"
            assert text in str(action.help), name


def test_bench_help_names_the_defaults_of_the_settings() -> None:
    """Options of the bench that are settings of a process tell its number, not whose it is."""
    bounds = {name: field.default for name, field in ClientSettings.model_fields.items()}
    engine = {name: setting.default for name, setting in engine_settings().items()}
    options = {"max_tenant_tokens", "max_pool_tokens", "max_batch_tokens", "max_num_seqs"}
    told = {each.dest: str(each.help) for each in pool_bench.build_parser()._actions}
    for name in options:
        assert f"(default: {(bounds | engine)[name]})" in told[name], name


def test_demo_options_are_the_parsers() -> None:
    """The demo takes what the parser gives, with the same defaults."""
    given = vars(cli.build_parser().parse_args(["demo"]))
    del given["run"]
    assert DemoOptions(**given) == DemoOptions()


def test_version_is_the_distributions(capsys: pytest.CaptureFixture[str]) -> None:
    """`tokenbus --version` prints name and version."""
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"tokenbus {version('tokenbus')}\n"


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        ([], "COMMAND"),
        (["fly"], "'fly'"),
        (["submit"], "PROMPT"),
        (["submit", "hi", "--max-tokens", "many"], "--max-tokens"),
        (["worker", "--engine", "steam"], "--engine"),
        (["model", "pull"], "NAME"),
    ],
)
def test_wrong_arguments_get_one_sentence_and_code_2(
    args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be parsed is answered with one line that names it."""
    with pytest.raises(SystemExit) as caught:
        cli.main(args)
    message = capsys.readouterr().err
    assert caught.value.code == 2
    assert message.count("\n") == 1
    assert hint in message


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["demo", "--jobs", "0"], "--jobs"),
        (["demo", "--threads", "-1"], "--threads"),
        (["demo", "--json", "/nowhere/at/all.json"], "--json"),
        (["demo", "--model", "./no-such-folder"], "no-such-folder"),
        (["worker", "--max-num-seqs", "0"], "max_num_seqs"),
        (["worker", "--redis", "embedded://"], "embedded:///path"),
        (["submit", "hi", "--redis", "embedded://"], "embedded:///path"),
        (["submit", "hi", "--redis", "http://localhost"], "http://localhost"),
        (["status", "--redis", "embedded://"], "embedded:///path"),
        (["model", "pull", "gpt-9"], "gpt-9"),
    ],
)
def test_wrong_values_get_one_sentence_and_code_2(
    args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What parses but cannot be meant is answered in one line, before anything is started."""
    assert cli.main(args) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert hint in message


def test_variable_that_is_nearly_a_setting_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No process reads it, and nobody would know; what is further off is somebody's own."""
    for name in ("NUM_PAGE", "LOGLEVEL", "MY_KEY", "REDIS_HOST", "CACHE", "NUM_PAGES"):
        monkeypatch.setenv(f"TOKENBUS_{name}", "4")
    monkeypatch.setattr(sys, "argv", ["tokenbus", "config", "show", "client"])
    assert cli.main() == 0
    assert capsys.readouterr().err.splitlines() == [
        "tokenbus: TOKENBUS_LOGLEVEL is no setting and is left out; is it TOKENBUS_LOG_LEVEL?",
        "tokenbus: TOKENBUS_NUM_PAGE is no setting and is left out; is it TOKENBUS_NUM_PAGES?",
    ]
    assert cli.main(sys.argv[1:]) == 0
    assert not capsys.readouterr().err


def test_taken_port_of_a_gateway_is_told_before_the_server_is_asked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One sentence and code 2, as for every wrong setting."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert cli.main(["gateway", "--port", port, "--redis", "redis://127.0.0.1:1"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"tokenbus: gateway_port: 127.0.0.1:{port}: ")
    assert message.count("\n") == 1


def test_unreachable_server_is_one_error_without_the_password(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A server that is not there costs code 1 and shows its URL, the password hidden."""
    assert cli.main(["status", "--redis", NOWHERE]) == 1
    message = capsys.readouterr().err
    assert "127.0.0.1:1" in message
    assert "secret" not in message


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RequestInvalid("max_tokens", "must be positive"), 2),
        (ModelNotFound("no such model"), 2),
        (ModelBroken("damaged"), 1),
        (ServerUnreachable("no server"), 1),
        (KeyboardInterrupt(), 130),
        (ModuleNotFoundError("no torch", name="torch"), 2),
    ],
)
def test_errors_raised_on_purpose_become_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller's mistake is 2, a failure of the work 1, Ctrl-C 130."""

    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_run_status", fail)
    assert cli.main(["status"]) == code


@pytest.mark.parametrize("error", [ValueError("ours"), ModuleNotFoundError(name="tokenbus.lost")])
def test_bug_of_ours_keeps_its_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that nobody raised on purpose is not dressed up as one."""

    def fail(_: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(cli, "_run_status", fail)
    with pytest.raises(type(error)):
        cli.main(["status"])


def test_reader_that_hangs_up_ends_the_command_quietly() -> None:
    """Output into a pipe that was closed is no traceback."""
    code = (
        "import sys\nfrom tokenbus.producer.commands import cli\n"
        "cli._run_status = lambda _: [print('x' * 99, flush=True) for _ in range(9999)] and 0\n"
        "sys.exit(cli.main(['status']))"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=PATIENCE_S) == cli.EXIT_FAILED


def test_ctrl_c_while_the_command_is_imported_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Code 130 then as well: `main` is not there yet to say so."""
    late = "tokenbus.producer.commands.help_texts"

    class Interrupted:
        @staticmethod
        def find_spec(name: str, *_: object) -> None:
            if name == late:
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, late)
    monkeypatch.setattr(sys, "meta_path", [Interrupted, *sys.meta_path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(cli.__file__)
    assert ended.value.code == cli.EXIT_INTERRUPTED


def test_ctrl_c_that_an_import_swallows_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception in a finaliser goes no further, and torch runs many while it is imported."""

    class Finalised:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    with cli._loading_torch(argparse.Namespace(rest=[])):
        Finalised()
    assert ended == [cli.EXIT_INTERRUPTED]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_module_runs_as_the_command() -> None:
    """`python -P -m tokenbus.producer.commands.cli` is the command where no script is installed."""
    assert _run("--version").stdout == f"tokenbus {version('tokenbus')}\n"


@pytest.mark.parametrize("command", [["--help"], ["--version"], ["submit", "--help"]])
def test_output_on_a_full_disk_is_told_in_one_line(command: list[str]) -> None:
    """Code 1 and the system's reason, however little there was to print."""
    # As most have it: what is printed stays in a buffer.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        run = subprocess.run(
            [*COMMAND, *command], stdout=full, stderr=-1, text=True, timeout=PATIENCE_S, env=env
        )
    assert (run.returncode, run.stderr.count("\n")) == (1, 1), run.stderr
    assert "No space left on device" in run.stderr


def test_standard_streams_that_are_closed_are_no_sockets() -> None:
    """A service is started without them: what prints must not write into a connection."""
    code = (
        "import socket, sys; from tokenbus.producer import terminal;"
        "terminal.open_standard_streams();"
        "s = socket.socket(); print(1); print(2, file=sys.stderr); sys.exit(sys.stdin.read()"
        " or s.fileno() < 3)"
    )
    script = f"{shlex.join([sys.executable, '-P', '-c', code])} <&- >&- 2>&-"
    run = subprocess.run(["/bin/sh", "-c", script], timeout=PATIENCE_S)
    assert run.returncode == 0


def test_text_that_an_output_cannot_carry_is_escaped() -> None:
    """A terminal of one byte a character ends no command."""
    code = (
        "from tokenbus.producer.terminal import open_standard_streams as o; o(); print('a\u20ac')"
    )
    run = subprocess.run(
        [sys.executable, "-P", "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, capture_output=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert run.stdout == b"a\\u20ac\n", run.stderr


def test_limit_of_no_dead_letters_is_wrong_input(capsys: pytest.CaptureFixture[str]) -> None:
    """What shows nothing is no way to see that there is nothing."""
    assert cli.main(["dead", "list", "--limit", "0", "--redis", NOWHERE]) == 2
    assert "limit" in capsys.readouterr().err
