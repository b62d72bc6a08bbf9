"""The options of every sub-command: their names, defaults and help, and nothing but argparse.

It is one file because an option that several commands have is spelled once.
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from tokenbus.producer.contract.bounds import DEFAULT_PRIORITY, DEFAULTS
from tokenbus.producer.contract.keys import check_pool
from tokenbus.producer.server.shown_url import hide_in_text
from tokenbus.producer.terminal import say, visible

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from _typeshed import SupportsWrite

EXIT_WRONG_INPUT = 2
MIN_WATCH_S, MAX_WATCH_S = 0.1, 86_400.0

# Longest answer of a talk: a job alone ends after fewer, where nobody says how many.
CHAT_TOKENS = 1024

JOB_STATES = ("held", "waiting", "delayed", "ending")

_POOL_HELP = "name of the pool, the workers that serve one model (default: default)"
_MODEL_HELP = "model: alias, local folder, GGUF file or hub id (default: smollm2-135m)"
_UNCOUNTED = "(default: unknown, and workers are not counted)"
REDIS_HELP = (
    "URL of the server: redis://, rediss://, unix:// or embedded:///path "
    "(default: redis://127.0.0.1:6379/0, or TOKENBUS_REDIS_URL); "
    "everyone on this machine can read a password given here in ps, not one in TOKENBUS_REDIS_URL"
)


class DeclaredOption(Protocol):
    """A setting of the engine: its option, empty for none, and what argparse is told of that."""

    @property
    def option(self) -> str:
        """Return the option."""

    @property
    def default(self) -> Any:
        """Return the default, None where the engine chooses."""

    def option_arguments(self) -> dict[str, Any]:
        """Return the arguments of `add_argument`."""


class Parser(argparse.ArgumentParser):
    """Answers wrong input in one sentence instead of a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Print what is wrong, without the passwords of URLs in it, and leave with code 2."""
        shown = visible(hide_in_text(message))
        self.exit(EXIT_WRONG_INPUT, f"{self.prog}: {shown} (see {self.prog} --help)\n")

    def _print_message(self, message: str, file: SupportsWrite[str] | None = None) -> None:
        """Print help or an error. Raises: OSError for help, which argparse would swallow."""
        if file is sys.stdout:
            print(message, end="", flush=True)
        else:
            say(message, end="")


def pool_name(name: str) -> str:
    """Return the name of a pool, or let argparse say what is wrong with it."""
    try:
        return check_pool(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _name(text: str) -> str:
    """Return the name of a job or a tenant, or let argparse say that no key can carry it."""
    if not text or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!a} is no name")
    return text


def _seconds(text: str) -> float:
    """Return a positive number of seconds, a day at most."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not MIN_WATCH_S <= seconds <= MAX_WATCH_S:
        raise argparse.ArgumentTypeError(
            f"{text!a} is no number of seconds from {MIN_WATCH_S:g} to {MAX_WATCH_S:g}"
        )
    return seconds


# One option an entry, its help below its name.
# fmt: off
def add_demo(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus demo` takes."""
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
        help="pages of the KV cache of the bus (default: enough for every job at once)")
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


def add_worker(parser: argparse.ArgumentParser, engine: Iterable[DeclaredOption]) -> None:
    """Declare what `tokenbus worker` takes; what is left out comes from the environment.

    `engine` are the engine's settings, which say themselves what their options are.
    """
    add = parser.add_argument
    add("--redis", dest="redis_url", metavar="URL", help=REDIS_HELP)
    add("--pool", type=pool_name, metavar="NAME", help=_POOL_HELP)
    add("--model", metavar="MODEL", help=_MODEL_HELP)
    add("--served-model-name", action="append", metavar="NAME",
        help="another name under which requests may ask for the model; may be given several times "
        "(default: the model alone)")
    add("--engine", choices=("paged", "null"),
        help="paged runs a model, null emits made-up tokens to try a queue (default: paged)")
    for setting in engine:
        if setting.option:
            add(setting.option, **setting.option_arguments())
    add("--replicas", type=int, metavar="N",
        help="workers to run on this host, each with a GPU or a share of the cores (default: 1)")
    add("--drain-deadline-s", type=float, metavar="S",
        help="seconds that running jobs get to end after Ctrl-C (default: 30)")
    add("--lease-ttl-s", type=float, metavar="S",
        help="seconds without a sign of life until others take the jobs over (default: 5)")
    add("--log-level", choices=("debug", "info", "warning", "error"),
        help="least severe event that is logged (default: info)")
    add("--log-format", choices=("auto", "json", "console"),
        help="form of the log lines (default: auto, json unless in a terminal)")
    add("--publishers", metavar="N",
        help="processes that write tokens to the server, 0 = the worker itself (default: auto,"
        " by cores; 0 below three)")
    add("--metrics-port", type=int, metavar="PORT",
        help="answer /metrics, /healthz and /readyz on this port, replicas on it and those after it"
        " (default: none)")
    add("--metrics-host", metavar="HOST",
        help="where that port is; who reaches it sees the metrics (default: 127.0.0.1)")


# What `tokenbus serve` says to its parts itself, and `tokenbus worker` to its replicas; the URL of
# the server and keys not where everyone can read them.
_DECIDED = frozenset({"--redis", "--model", "--pool", "--log-format"})
DECIDED_OF_GATEWAY = _DECIDED | {"--served-model-name", "--api-key"}
DECIDED_OF_REPLICAS = frozenset({"--redis", "--log-format"})


def add_serve(parser: argparse.ArgumentParser, parts: Iterable[argparse.ArgumentParser]) -> None:
    """Declare what `tokenbus serve` takes: the options of its parts, and a model.

    An option that two parts have is said once and goes to both; what serve decides itself is none
    of its options.
    """
    parser.add_argument("model", nargs="?", default="smollm2-135m", metavar="MODEL",
        help=_MODEL_HELP)
    parser.add_argument("--redis", metavar="URL",
        help="a server to use (default: an embedded one, in the cache folder)")
    known = set(_DECIDED)
    for part in parts:
        for action in part._actions:
            if not known & set(action.option_strings):
                known |= set(action.option_strings)
                parser._add_action(action)


def words_of(
    part: argparse.ArgumentParser,
    whole: argparse.ArgumentParser,
    given: argparse.Namespace,
    decided: frozenset[str] = _DECIDED,
) -> list[str]:
    """Return the options of one part of a command, as far as they were given to the whole of it.

    They are words of a command line, without those that are `decided` otherwise; an option of
    several parts is under the name of the first.
    """
    names = {option: action.dest for action in whole._actions for option in action.option_strings}
    words: list[str] = []
    for action in part._actions:
        option = next(iter(action.option_strings), "")
        if option in decided:
            continue
        value = getattr(given, names.get(option, ""), None)
        if value in (None, [], {}):
            continue
        if action.nargs == 0:
            words.append(option)
        elif isinstance(value, dict):
            words += [f"{option}={name}={_joined(each)}" for name, each in value.items()]
        else:
            several = value if isinstance(value, list) else [value]
            words += [f"{option}={each}" for each in several]
    return words


def _joined(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def add_chat(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus chat` takes."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL",
        help="model to start for the talk, or to ask a pool for"
        " (default: talk with what the pool serves)")
    add("--redis", metavar="URL", help=REDIS_HELP)
    add("--pool", type=pool_name, metavar="NAME", help=_POOL_HELP)
    add("--system", metavar="TEXT", help="system prompt (default: the model's own, if any)")
    add("--max-tokens", type=int, default=CHAT_TOKENS, metavar="N",
        help=f"longest answer in tokens (default: {CHAT_TOKENS})")
    _add_sampling(add)
    add("--tenant", default="default", metavar="NAME",
        help="whose share of the pool the talk uses (default: default)")


def _add_sampling(add: Callable[..., object]) -> None:
    """Declare how tokens are drawn and where an answer ends."""
    add("--temperature", type=float, metavar="T",
        help="spread of the sampling, 0 = always the likeliest token"
        f" (default: the model's, else {DEFAULTS['temperature']:g})")
    add("--top-k", type=int, metavar="K",
        help="draw from the K likeliest tokens, 0 = all"
        f" (default: the model's, else {DEFAULTS['top_k']:g})")
    add("--top-p", type=float, metavar="P",
        help="draw from the likeliest tokens that make up this share of 1"
        f" (default: the model's, else {DEFAULTS['top_p']:g})")
    add("--seed", type=int, metavar="N", help="seed of the sampling (default: drawn)")
    add("--stop", action="append", default=[], metavar="TEXT",
        help="end before this text; may be given several times (default: none)")


def add_submit(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus submit` takes."""
    add = parser.add_argument
    add("prompt", metavar="PROMPT", help="what to answer (required); - reads standard input")
    add("--redis", metavar="URL", help=REDIS_HELP)
    add("--pool", type=pool_name, default="default", metavar="NAME", help=_POOL_HELP)
    add("--system", metavar="TEXT", help="system prompt (default: the model's own, if any)")
    add("--raw", action="store_true",
        help="continue the prompt as it is, without a chat template (default: chat)")
    add("--max-tokens", type=int, default=DEFAULTS["max_tokens"], metavar="N",
        help=f"longest answer in tokens (default: {DEFAULTS['max_tokens']:g})")
    _add_sampling(add)
    add("--tenant", default="default", metavar="NAME",
        help="whose share of the pool the job uses (default: default)")
    add("--priority", type=int, default=DEFAULT_PRIORITY, metavar="N",
        help=f"urgency: 0 goes first, 2 last (default: {DEFAULT_PRIORITY})")
    add("--deadline-s", type=float, metavar="S",
        help="seconds from now after which the answer is useless (default: none)")
    add("--idempotency-key", metavar="KEY",
        help="the same key and request give the same job (default: none)")
    add("--callback-url", metavar="URL",
        help="POST the end of the job there, by tokenbus control (default: nowhere)")
    add("--json", action="store_true",
        help="print each event as a line of JSON (default: the text)")


def add_status(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus status` takes."""
    add = parser.add_argument
    add("--redis", metavar="URL", help=REDIS_HELP)
    add("--pool", type=pool_name, default="default", metavar="NAME", help=_POOL_HELP)
    add("--here", action="store_true",
        help="fail unless a worker of this host lives (default: a worker anywhere)")
    add("--json", action="store_true", help="print a line of JSON (default: text)")
    add("--watch", type=_seconds, nargs="?", const=2.0, metavar="S",
        help="print it again every S seconds, 2 without a number (default: once)")


def add_doctor(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus doctor` takes."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL", help=_MODEL_HELP)
    add("--redis", metavar="URL", help=REDIS_HELP)
    add("--pool", type=pool_name, metavar="NAME", help=_POOL_HELP)
    add("--device", metavar="NAME",
        help="what computes: auto, cpu or cuda[:index] (default: auto, a GPU where one works, else"
        " the CPU)")
    add("--json", action="store_true", help="print one object of JSON (default: a line each)")


def add_size(parser: argparse.ArgumentParser, engine: Mapping[str, DeclaredOption]) -> None:
    """Declare what `tokenbus size` takes; `engine` are the engine's settings by name."""
    add = parser.add_argument
    add("model", nargs="?", metavar="MODEL",
        help="folder with a config.json, that file, or an alias that was fetched"
        " (default: the four numbers below)")
    add("--weights-gib", type=float, metavar="GIB",
        help="weights in GiB, where no config tells (default: counted from the config)")
    add("--layers", type=int, metavar="N", help="layers of the model (default: the config's)")
    add("--kv-heads", type=int, metavar="N",
        help="heads of keys and values in a layer (default: the config's)")
    add("--head-dim", type=int, metavar="N",
        help="numbers in a head of keys or values (default: the config's)")
    add("--gpu-gib", type=float, metavar="GIB",
        help="memory of a GPU in GiB, as nvidia-smi has it in MiB / 1024"
        " (default: none, a CPU)")
    add("--other-gib", type=float, default=1.0, metavar="GIB",
        help="GiB of the GPU that CUDA and the kernels' work space take (default: 1)")
    for name in ("memory_fraction", "kv_cache_gib", "page_size", "max_num_seqs", "dtype",
                 "quantization", "kv_cache_dtype", "tensor_parallel"):
        setting = engine[name]
        add(setting.option, default=setting.default, **setting.option_arguments())
    add("--prompt-tokens", type=int, default=600, metavar="TOKENS",
        help="tokens of a prompt (default: 600)")
    add("--shared-tokens", type=int, default=0, metavar="TOKENS",
        help="tokens of them with which all prompts begin alike (default: 0)")
    add("--output-tokens", type=int, default=200, metavar="TOKENS",
        help="tokens of an answer (default: 200)")
    add("--gap-ms", type=float, default=50.0, metavar="MS",
        help="milliseconds between the tokens of a stream (default: 50)")
    add("--tokens-per-s", type=float, metavar="RATE",
        help="tokens a second that one worker generates with such jobs, as `tokenbus bench`"
        f" measures {_UNCOUNTED}")
    add("--think-s", type=float, default=30.0, metavar="S",
        help="seconds between an answer and its user's next question (default: 30)")
    add("--rate", type=float, metavar="RATE",
        help=f"jobs a second that come {_UNCOUNTED}")
    add("--burst-s", type=float, metavar="S",
        help="seconds for which they come (default: for ever)")
    add("--wait-s", type=float, default=0.0, metavar="S",
        help="seconds after a burst until the last of its jobs is done (default: 0)")
    add("--json", action="store_true", help="print a list as JSON (default: a line each)")


def add_config(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus config` takes."""
    add = parser.add_argument
    add("action", choices=("show",), help="print settings, and where each comes from (required)")
    add("process", nargs="?", default="worker", choices=("client", "worker", "gateway", "control"),
        help="whose settings: those of the named kind of process (default: worker)")
    add("--changed", action="store_true",
        help="only those that are no defaults (default: all of them)")
    add("--json", action="store_true", help="print a list as JSON (default: a line each)")


def add_jobs(commands: Any) -> list[argparse.ArgumentParser]:
    """Declare the commands about jobs that were submitted before, and return them."""
    listing = commands.add_parser("list", help="list jobs that have not ended")
    listing.add_argument("--tenant", type=_name, metavar="NAME",
        help="only jobs of this tenant (default: those of all)")
    listing.add_argument("--state", action="append", choices=JOB_STATES,
        help="only jobs in this state: held by a worker, waiting for one, delayed until their time"
        " comes, or ending as cancelled or too late; may be given several times (default: all)")
    listing.add_argument("--limit", type=int, default=100, metavar="N",
        help="jobs at most, up to 1000 (default: 100)")
    show = commands.add_parser("show", help="print what the server knows of a job")
    show.add_argument("--request", action="store_true",
        help="print its request too, prompt included (default: all but that)")
    result = commands.add_parser("result", help="wait for the end of jobs and print their answers")
    result.add_argument("--timeout-s", type=_seconds, metavar="S",
        help="seconds to wait (default: until it ends)")
    follow = commands.add_parser("follow", help="stream a job's answer from any token on")
    follow.add_argument("--from", dest="cursor", type=int, default=0, metavar="CURSOR",
        help="number of the last token that was seen (default: 0, from the beginning)")
    cancel = commands.add_parser("cancel", help="cancel a job wherever it is")
    result.add_argument("ids", type=_name, nargs="+", metavar="ID",
        help="ids of jobs (required); answers are printed in their order")
    for command in (show, follow, cancel):
        command.add_argument("id", type=_name, metavar="ID",
            help="the job's id, as `tokenbus list` tells it (required)")
    for command in (show, result, follow, cancel):
        command.add_argument("--tenant", type=_name, default="default", metavar="NAME",
            help="whose job it is (default: default)")
    for command in (listing, result, follow):
        command.add_argument("--json", action="store_true",
            help="print lines of JSON (default: text)")
    made = [listing, show, result, follow, cancel]
    for command in made:
        add_pool(command)
    return made


def add_top(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus top` takes."""
    add_pool(parser)
    parser.add_argument("--interval-s", type=_seconds, default=1.0, metavar="S",
        help="seconds between looks (default: 1)")
    parser.add_argument("--once", action="store_true",
        help="print one look and end, as without a terminal (default: go on until q or Ctrl-C)")


def add_pool(parser: argparse.ArgumentParser) -> None:
    """Declare the server and the pool of a command."""
    parser.add_argument("--redis", metavar="URL", help=REDIS_HELP)
    parser.add_argument("--pool", type=pool_name, default="default", metavar="NAME",
        help=_POOL_HELP)


def add_dead(parser: argparse.ArgumentParser) -> None:
    """Declare what the commands of `tokenbus dead` take."""
    commands = parser.add_subparsers(
        dest="action", title="commands", metavar="COMMAND", required=True,
        parser_class=Parser)
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
            help="entry ids or job ids, as `tokenbus dead list` tells them (required unless --all)")
        command.add_argument("--all", action="store_true",
            help="take every dead letter (default: those named)")
    for command in (listing, show, retry, purge):
        command.add_argument("--tenant", metavar="NAME",
            help="only letters of this tenant (default: those of all)")
        command.add_argument("--redis", metavar="URL", help=REDIS_HELP)
        command.add_argument("--pool", type=pool_name, default="default", metavar="NAME",
            help=_POOL_HELP)


def add_control(parser: argparse.ArgumentParser) -> None:
    """Declare what `tokenbus control` takes."""
    add = parser.add_argument
    add("role", nargs="?", choices=("service", "adapter", "check"), default="service",
        help="service runs crons and webhooks, adapter runs arq's generate jobs on the pool,"
        " check tells whether a service lives (default: service)")
    add("--redis", dest="redis_url", metavar="URL", help=REDIS_HELP)
    add("--arq-redis", dest="arq_redis_url", metavar="URL",
        help="where arq keeps its jobs; with a password better as TOKENBUS_ARQ_REDIS_URL"
        " (default: the server of the pool)")
    add("--pool", type=pool_name, metavar="NAME", help=_POOL_HELP)
    add("--crons", metavar="FILE",
        help="table of jobs to submit at set times, in TOML as in docs/control.md (default: none)")
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
    add("--metrics-port", type=int, metavar="PORT",
        help="answer /metrics, /healthz and /readyz on this port (default: none)")
    add("--metrics-host", metavar="HOST",
        help="where that port is; who reaches it sees the metrics (default: 127.0.0.1)")
# fmt: on
