"""The stage of `small_jobs.py` and `small_jobs_scale.py`: servers, workers and clients on loopback.

Every process belongs to one run, is started for it and ended with it; its CPU time is read from the
system by its process id. It is one file because a run is all of them: started, measured, ended.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import psutil
from redis import Redis
from redis.exceptions import RedisError

from tokenbus.producer.server.embedded import find_server_binary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

SIDES = Path(__file__).with_name("small_jobs_sides.py")
PACKAGES = ("engine", "kernels", "producer", "worker")
NUM_SLOTS = 16384
# By a word in the command line; what else belongs to a worker is the worker process itself.
KINDS = {"engine_process": "engine", "engine.process": "engine", "publisher": "publisher"}
# The command line of a release, wherever it lies there. The earlier name is tried first: an
# installation of this release offers its own names to any other.
BENCH = """
import importlib.util, runpy, sys
found = importlib.util.find_spec("tokenbus.producer.cli")
name = "tokenbus.producer.cli" if found else "tokenbus.producer.commands.cli"
sys.argv = ["tokenbus", "bench", "pool", *sys.argv[1:]]
runpy.run_module(name, run_name="__main__")
"""
SCRIPTS = ("evalsha", "eval", "fcall")
START_TIMEOUT_S = 60.0
# A worker that used less than this in that time has nothing left to do.
QUIET_CPU_S, QUIET_S, QUIET_TIMEOUT_S = 0.02, 0.3, 5.0


class SideFailed(Exception):
    """A process did not do its part; the message says which and why."""


class SideMissing(Exception):
    """A contender is not there; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Tree:
    """A release of tokenbus: this one, or that of a checkout."""

    name: str
    environment: dict[str, str]
    folder: str = ""


@contextmanager
def checkout(name: str, folder: Path) -> Iterator[Tree]:
    """Give the release in a checkout, through links as `tests/typecheck.py` makes them."""
    with tempfile.TemporaryDirectory(prefix="tb-tree-") as made:
        links = Path(made) / "tokenbus"
        links.mkdir()
        for package in PACKAGES:
            (links / package).symlink_to(folder.resolve() / package, target_is_directory=True)
        paths = [made, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1"}
        yield Tree(name, environment, made)


class Child:
    """A process of `small_jobs_sides.py`, spoken to by lines."""

    def __init__(self, role: str, options: dict[str, Any], environment: dict[str, str]) -> None:
        self._role = role
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(SIDES), role],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )
        # Not as an argument, which has at most 128 KiB.
        self._say(json.dumps(options))

    def hear(self) -> dict[str, Any]:
        """Return the next line that it says. Raises: SideMissing, SideFailed."""
        stdout = self.process.stdout
        line = stdout.readline() if stdout is not None else ""
        if not line:
            raise SideFailed(f"{self._role} ended with {self.process.wait()}, see above")
        message: dict[str, Any] = json.loads(line)
        if "missing" in message:
            raise SideMissing(str(message["missing"]))
        return message

    def go(self) -> None:
        """Let it begin."""
        self._say("go")

    def _say(self, line: str) -> None:
        if self.process.stdin is not None:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def end(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self.process.wait()


class Stage:
    """The processes of one run; as a context manager it ends them."""

    def __init__(self, binary: str, limit_s: float) -> None:
        self._binary = binary
        self._limit_s = limit_s
        self._stack = ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="tb-sj-")))
        self.servers: dict[int, subprocess.Popen[bytes]] = {}
        self.workers: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Self:
        """Return the empty stage."""
        return self

    def __exit__(self, *_: object) -> None:
        """End everything."""
        self._stack.close()

    def start_server(self, *options: str) -> str:
        """Start a server with an append-only file synced once a second; return its URL."""
        port = _free_port()
        folder = self._folder / str(port)
        folder.mkdir()
        command = [
            self._binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder),
            "--save", "", "--appendonly", "yes", "--appendfsync", "everysec", *options,
        ]  # fmt: skip
        quiet = subprocess.DEVNULL
        server = subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet)
        self.servers[port] = server
        self._stack.callback(_end, server)
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(port):
            if server.poll() is not None or time.monotonic() > deadline:
                raise SideFailed(f"{self._binary} does not answer on port {port}")
            time.sleep(0.02)
        return f"redis://127.0.0.1:{port}"

    def start_cluster(self, num_masters: int) -> str:
        """Start masters that share all slots; return the URL of the cluster."""
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000")
        ports = [int(self.start_server(*options).rpartition(":")[2]) for _ in range(num_masters)]
        share = -(-NUM_SLOTS // num_masters)
        clients = [Redis(host="127.0.0.1", port=port) for port in ports]
        for number, client in enumerate(clients):
            last = min((number + 1) * share, NUM_SLOTS) - 1
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, last)
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
        deadline = time.monotonic() + START_TIMEOUT_S
        signs = (b"cluster_state:ok", b"cluster_known_nodes:%d\r" % num_masters)
        while not all(sign in _info(client) for client in clients for sign in signs):
            if time.monotonic() > deadline:
                raise SideFailed("the cluster does not come together")
            time.sleep(0.1)
        return f"redis+cluster://127.0.0.1:{ports[0]}"

    def start_worker(self, tree: Tree, settings: dict[str, object]) -> None:
        """Start a worker of tokenbus with settings by name; it ends with this process.

        It reads the server's URL from standard input, that of an earlier release its environment.
        """
        environment = {f"TOKENBUS_{name.upper()}": str(value) for name, value in settings.items()}
        log = self._stack.enter_context((self._folder / "workers.log").open("ab"))
        worker = subprocess.Popen(
            [sys.executable, "-P", "-m", "tokenbus.worker.bench.worker_process", str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=os.environ | tree.environment | environment,
            start_new_session=True,
        )
        self.workers.append(worker)
        self._stack.callback(_end, worker)
        if worker.stdin is not None:
            with worker.stdin as line:
                line.write(f"{settings['redis_url']}\n".encode())

    def start_side(self, role: str, options: dict[str, Any], tree: Tree | None = None) -> Child:
        """Start a process of `small_jobs_sides.py`."""
        child = Child(role, options | {"limit_s": self._limit_s}, tree.environment if tree else {})
        self._stack.callback(child.end)
        if role.endswith("-worker"):
            self.workers.append(child.process)
        return child

    def folder(self, name: str) -> Path:
        """Make a folder that ends with the stage."""
        made = self._folder / name
        made.mkdir()
        return made

    def workers_said(self) -> str:
        """Return the last that the workers wrote."""
        log = self._folder / "workers.log"
        lines = log.read_text(errors="replace").splitlines() if log.is_file() else []
        return "\n".join(lines[-10:])

    def cpu_s(self) -> dict[str, float]:
        """Return the CPU seconds so far of servers and workers, by kind of process."""
        spent = {"server": 0.0, "worker": 0.0, "engine": 0.0, "publisher": 0.0}
        for server in self.servers.values():
            spent["server"] += _cpu_of(psutil.Process(server.pid))
        for worker in self.workers:
            with suppress(psutil.NoSuchProcess):
                family = psutil.Process(worker.pid)
                for process in [family, *family.children(recursive=True)]:
                    spent[_kind(process)] += _cpu_of(process)
        return spent

    def scripts(self) -> tuple[float, float]:
        """Return how many scripts the servers have run so far, and their seconds."""
        calls = spent_us = 0.0
        for port in self.servers:
            with Redis(host="127.0.0.1", port=port) as client:
                stats: Any = client.info("commandstats")
            found = [stats.get(f"cmdstat_{name}") for name in SCRIPTS]
            calls += sum(each["calls"] for each in found if each)
            spent_us += sum(each["usec"] for each in found if each)
        return calls, spent_us / 1e6

    def settle(self) -> None:
        """Wait until the workers have nothing left to do for jobs that have ended."""
        deadline = time.monotonic() + QUIET_TIMEOUT_S
        before = sum(self.cpu_s().values())
        while time.monotonic() < deadline:
            time.sleep(QUIET_S)
            now = sum(self.cpu_s().values())
            if now - before < QUIET_CPU_S * max(1, len(self.workers)):
                return
            before = now


def server_binary(given: str | None) -> str:
    """Return the server to run: the one that is given, else the one that tokenbus finds."""
    return given or find_server_binary()


@dataclass(frozen=True, slots=True)
class Run:
    """What one run took: the time from the first submit to the last answer, CPU by process.

    `script_calls` and `script_cpu_s` are the server's own count of scripts, in that time too.
    """

    seconds: float
    cpu_s: dict[str, float]
    script_calls: int
    script_cpu_s: float
    outcomes: list[dict[str, Any]]

    @property
    def num_ended(self) -> int:
        """Jobs that ended."""
        return sum(each["num_ended"] for each in self.outcomes)

    @property
    def num_wrong(self) -> int:
        """Jobs whose answer was not the one that is known."""
        return sum(each["num_wrong"] for each in self.outcomes)

    @property
    def jobs_per_s(self) -> float:
        """Jobs a second."""
        return self.num_ended / self.seconds

    @property
    def latencies_ms(self) -> list[float]:
        """The time of each job beyond the engine's own, where that was measured."""
        return [each for outcome in self.outcomes for each in outcome["latencies_ms"]]

    def cpu_us_per_job(self) -> dict[str, float]:
        """Return the CPU time of a job by kind of process, and all of it."""
        shared = {kind: 1e6 * spent / self.num_ended for kind, spent in self.cpu_s.items()}
        return shared | {"all": sum(shared.values())}


def run_bench(tree: Tree, options: Sequence[str], limit_s: float) -> Run:
    """Run `tokenbus bench pool` of a release, its own clients and checks included.

    Raises: SideFailed.
    """
    with tempfile.TemporaryDirectory(prefix="tb-sj-") as made:
        report = Path(made) / "report.json"
        command = [sys.executable, "-P", "-c", BENCH, *options]
        done = subprocess.run(
            [*command, "--plain", "--json", str(report)],
            env=os.environ | tree.environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            check=False,
        )
        if done.returncode:
            raise SideFailed(f"bench pool of {tree.name}: {done.stdout[-500:]}{done.stderr[-500:]}")
        [figures] = json.loads(report.read_text())["runs"]
    num_ended = sum(figures["outcomes"].values())
    tokens = figures["output_tokens"]
    spent = {kind: us * tokens / 1e6 for kind, us in figures["cpu_us_per_token"].items()}
    spent["client"] = spent.pop("reader")
    outcome = {"num_ended": num_ended, "num_wrong": figures["num_faults"], "latencies_ms": []}
    return Run(figures["duration_s"], spent, 0, 0.0, [outcome])


def run_clients(stage: Stage, children: Sequence[Child]) -> Run:
    """Let clients begin together and return what it took. Raises: SideMissing, SideFailed."""
    for child in children:
        child.hear()
    stage.settle()
    cpu_s, scripts = stage.cpu_s(), stage.scripts()
    for child in children:
        child.go()
    outcomes = [child.hear() for child in children]
    stage.settle()
    spent = {kind: now - cpu_s[kind] for kind, now in stage.cpu_s().items()}
    spent["client"] = sum(each["cpu_s"] for each in outcomes)
    calls, script_cpu_s = (
        after - before for before, after in zip(scripts, stage.scripts(), strict=True)
    )
    began_s = min(each["began_s"] for each in outcomes)
    seconds = max(each["ended_s"] for each in outcomes) - began_s
    return Run(seconds, spent, int(calls), script_cpu_s, outcomes)


def _end(process: subprocess.Popen[Any]) -> None:
    """End a process and its children."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid)
        for child in family.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()


def _cpu_of(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system)


def _kind(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess):
        words = " ".join(process.cmdline()[:6])
        return next((kind for word, kind in KINDS.items() if word in words), "worker")
    return "worker"


def _free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        if port < 55_000:  # a cluster's second port lies above it
            return port


def _answers(port: int) -> bool:
    with suppress(RedisError, OSError), Redis(host="127.0.0.1", port=port) as client:
        return bool(client.ping())
    return False


def _info(client: Redis) -> bytes:
    info: bytes = client.execute_command("CLUSTER", "INFO")
    return info
