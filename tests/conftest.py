"""Settings that have to be made before anything imports Triton, and which tests start processes."""

import atexit
import gc
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import hypothesis
import pytest
import structlog
from loopback import sitecustomize as contacts
from matrix import leave_out_cells, mix_files, share_servers

# Triton decides at its first import whether its own functions are interpreted, and transformers
# imports it on the way to a model; a GPU's driver shows as this device file.
if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"
# A run started in the background of a script ignores SIGINT, and so would all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
# An example of 200 ms fails by default, which says how busy the machine is.
hypothesis.settings.register_profile("tokenbus", deadline=None)
hypothesis.settings.load_profile("tokenbus")

contacts.watch(Path(tempfile.gettempdir()) / f"tokenbus-contacts-{os.getpid()}")

# What modules of tests import are millions of objects that stay: no collection looks at them, but
# the last one, in which extensions find what they look for.
gc.disable()
atexit.register(gc.unfreeze)

# Fixtures that start a server or a worker, alone or by way of others.
PROCESS_FIXTURES = {"deployment", "own_server", "private_server", "server"}
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}
# The CPU's kernels are compiled once per machine, by whichever test needs them first.
COMPILERS = ("c++", "g++", "clang++")


@pytest.fixture(autouse=True)
def logs_as_before() -> Iterator[None]:
    """Take back how a test set up its log: the next one in this process may look for a warning."""
    yield
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def nothing_beyond_the_loopback() -> Iterator[None]:
    """Fail a test that, or a child of which, has tried to reach another machine."""
    yield
    if refused := contacts.take_notes():
        pytest.fail(f"it went beyond the loopback:\n{refused}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what stands on a process for `make check`, and the rest of a matrix for `make test`.

    Processes of xdist that share cores get files that wait and files that compute in turn.
    """
    leave_out_cells(items)
    share_servers(items)
    for item in items:
        if PROCESS_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.processes)
    if hasattr(config, "workerinput"):
        mix_files(items, "processes")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config) -> None:
    """Have the processes of xdist forked from one that has imported the modules of the tests."""
    if sys.platform == "linux":
        import run_stem

        stack = ExitStack()
        config.add_cleanup(stack.close)
        stack.enter_context(run_stem.planted(Path(arg.partition("::")[0]) for arg in config.args))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run two processes more than there are cores, unless the tests that wait are left out."""
    own = hasattr(os, "sched_getaffinity")
    num_cores = len(os.sched_getaffinity(0)) if own else os.cpu_count() or 1
    return num_cores + 2 * ("not processes" not in config.option.markexpr)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Collect garbage from here on; plant what processes of tests are forked from, if any."""
    gc.freeze()
    # Tests make and drop many objects at once: by the defaults a parser of our sources, for one,
    # spends two thirds of its time on collections.
    gc.set_threshold(50_000, 20, 20)
    gc.enable()
    if any(item.get_closest_marker("processes") for item in session.items):
        from workers import forkserver, stem

        stem.plant()
        forkserver.plant()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> object:
    """Let a test without the mark start no process where those with it are left out."""
    _Guard.is_on = "not processes" in item.config.option.markexpr
    try:
        return (yield)
    finally:
        _Guard.is_on = False


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> Iterator[None]:
    """Say last how the first tests failed: of a long log the end is what is kept."""
    yield
    stats = terminalreporter.stats
    for report in [*stats.get("failed", ()), *stats.get("error", ())][:3]:
        terminalreporter.write_line(f"{report.nodeid} ({report.when})")
        for line in report.longreprtext.splitlines()[-8:]:
            terminalreporter.write_line(f"    {line[:300]}")


class _Guard:
    is_on = False


def _refuse_processes(event: str, args: tuple[object, ...]) -> None:
    if _Guard.is_on and event in STARTS and not str(args[0] if args else "").endswith(COMPILERS):
        pytest.fail(f"it starts a process ({event} {args[:1]}): mark it `pytest.mark.processes`")


sys.addaudithook(_refuse_processes)
