"""The life of the child processes of one command: started, watched, restarted, drained.

starting   a child that ends before all are ready ends the whole, with its reason
ready      a child that ends is started again, after a pause that doubles while it keeps failing;
           a part of which no child can be kept running ends the whole
draining   the first stop asks the parts in their order, each once the one before has ended; the
           second asks all at once; the third kills
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from typing import TYPE_CHECKING, Protocol

from tokenbus.producer.errors import ChildFailed
from tokenbus.producer.serving import told_lines
from tokenbus.producer.serving.served_child import ChildEnded, ChildSaid, ServedChild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenbus.producer.serving.served_child import ChildCommand

# Wrong input, the code of the command line: starting again would end the same way.
_WRONG_INPUT = 2
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# One that ran for so long did not fail to start.
_STEADY_S = 60.0
# In a row; at that pause it has failed for three minutes.
MAX_FAILURES = 10
_MAX_LINES = 50
# What a child ends with that was asked to: by itself, or before it could hear the signal.
_IN_ORDER = (0, -signal.SIGTERM)


class ChildTeller(Protocol):
    """Hears of the children, on the thread that runs them."""

    def said(self, name: str, line: str) -> None:
        """Take a line that a child printed."""
        ...

    def restarts(self, name: str, reason: str, pause_s: float) -> None:
        """Take why a child ended, and after how many seconds it starts again."""
        ...


class _Stop:
    """Somebody asks for the end."""


class ChildSupervisor:
    """Keeps several commands running in child processes until it is asked to stop.

    A child is ready once its log, which has to be JSON, says that it has started.
    """

    def __init__(
        self,
        commands: Mapping[str, ChildCommand],
        environment: Mapping[str, str],
        teller: ChildTeller,
    ) -> None:
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._children = {
            name: ServedChild(name, command, environment, self._events)
            for name, command in commands.items()
        }
        self._teller = teller
        self._unready = set(commands)
        self._start_ended = threading.Event()
        self._failures = dict.fromkeys(commands, 0)
        # Children that cannot be kept running.
        self._lost: set[str] = set()
        # Children of whose end nothing was heard yet, and those that start again, with when.
        self._running: set[str] = set()
        self._restarts: dict[str, float] = {}
        self._last_lines: dict[str, list[str]] = {name: [] for name in commands}
        self._num_stops = 0
        # Children that were asked to stop, for whom another signal would end their drain.
        self._asked: set[str] = set()
        self._failure: ChildFailed | None = None

    def request_stop(self, *_: object) -> None:
        """Ask for the end; fit to be a signal handler, for the queue may be put to in one."""
        self._events.put(_Stop())

    @property
    def was_ready(self) -> bool:
        """Tell whether all were ready once."""
        return not self._unready

    def wait_ready(self) -> None:
        """Wait until all are ready for the first time, while `run` runs in another thread.

        Raises: ChildFailed if one ended before, or the end was asked for.
        """
        self._start_ended.wait()
        if self._unready:
            raise self._failure or ChildFailed("stopped before it was ready")

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Run until asked to stop, and leave no child behind.

        `on_ready` is called once, when all are ready for the first time.
        Raises: ChildFailed with the reason of a child that cannot be kept running, or that did not
            end in order when it was asked to.
        """
        try:
            for name in self._children:
                self._start(name)
            while self._running or not self._num_stops:
                self._take(self._next_event())
                if not self._unready and not self._start_ended.is_set():
                    on_ready()
                    self._start_ended.set()
            if self._failure is not None:
                raise self._failure
        finally:
            self._end_all()
            self._start_ended.set()

    def _start(self, name: str) -> None:
        self._last_lines[name] = []
        self._children[name].start()
        self._running.add(name)

    def _next_event(self) -> object:
        """Return the next event, None when a child is due to be started again."""
        due = min(self._restarts.values(), default=None)
        timeout_s = None if due is None else max(0.0, due - time.monotonic())
        try:
            return self._events.get(timeout=timeout_s)
        except queue.Empty:
            return None

    def _take(self, event: object) -> None:
        match event:
            case ChildSaid(name, line):
                self._heard(name, line)
            case ChildEnded():
                self._ended(event)
            case _Stop():
                self._num_stops += 1
                self._pass_stop_on(is_asked_again=self._num_stops > 1)
            case _:
                self._start_due()

    def _heard(self, name: str, line: str) -> None:
        if told_lines.is_start(line):
            self._unready.discard(name)
        if told_lines.is_loud(line):
            self._last_lines[name] = [*self._last_lines[name], line][-_MAX_LINES:]
        self._teller.said(name, line)

    def _ended(self, event: ChildEnded) -> None:
        name = event.name
        self._running.discard(name)
        reason = f"ended with {_shown(event.code)}{self._reason(name)}"
        if self._num_stops:
            if event.code not in _IN_ORDER and self._failure is None:
                self._failure = ChildFailed(f"{name} {reason}")
            self._pass_stop_on()
            return
        self._failures[name] = 1 if event.ran_s > _STEADY_S else self._failures[name] + 1
        is_wrong = event.code == _WRONG_INPUT
        is_lost = is_wrong or self._failures[name] > MAX_FAILURES
        (self._lost.add if is_lost else self._lost.discard)(name)
        if not self._start_ended.is_set() or self._has_lost_part(name):
            self._failure = ChildFailed(f"{name} {reason}", is_wrong_input=is_wrong)
            self._num_stops += 1
            self._pass_stop_on()
            return
        doublings = min(self._failures[name] - 1, MAX_FAILURES)
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2**doublings)
        self._teller.restarts(name, reason, pause_s)
        self._restarts[name] = time.monotonic() + pause_s

    def _has_lost_part(self, name: str) -> bool:
        """Tell whether no child of this one's part can be kept running."""
        part = self._children[name].part
        return self._lost.issuperset(n for n, child in self._children.items() if child.part == part)

    def _reason(self, name: str) -> str:
        """Return the last that a child said of itself, the sentence of a command before its log."""
        lines = [line for line in self._last_lines[name] if line.strip()]
        said = [line for line in lines if line.startswith("tokenbus: ")] or lines
        told = told_lines.told(said[-1]) if said else None
        return f": {told.removeprefix('tokenbus: ')}" if told else ""

    def _start_due(self) -> None:
        now = time.monotonic()
        for name in [name for name, due in self._restarts.items() if due <= now]:
            del self._restarts[name]
            self._start(name)

    def _pass_stop_on(self, *, is_asked_again: bool = False) -> None:
        """Signal the first part that still runs, or all of them where the stop is urgent."""
        self._restarts.clear()
        running = [child for name, child in self._children.items() if name in self._running]
        if self._num_stops == 1:
            running = [child for child in running if child.part == running[0].part]
        for child in running:
            if is_asked_again or child.name not in self._asked:
                self._asked.add(child.name)
                child.send(signal.SIGKILL if self._num_stops > 2 else signal.SIGTERM)

    def _end_all(self) -> None:
        """Stop what still runs, after an error say, and wait for it."""
        for child in self._children.values():
            child.let_go()
        deadline = time.monotonic() + 2 * MAX_PAUSE_S
        while any(child.is_running for child in self._children.values()):
            if time.monotonic() > deadline:
                for child in self._children.values():
                    child.send(signal.SIGKILL)
            time.sleep(0.02)


def _shown(code: int) -> str:
    """Return how an exit code is told."""
    if code >= 0:
        return f"code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
