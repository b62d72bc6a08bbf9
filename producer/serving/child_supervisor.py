"""The life of the child processes of one command: started, watched, restarted, drained.

starting   a child that ends before all are ready ends the whole, with its reason
ready      a child that ends is started again, after a pause that doubles while it keeps failing
draining   the first stop asks the children in their order, each once the one before has ended;
           the second asks all at once; the third kills
"""

from __future__ import annotations

import queue
import signal
import threading
import time
from typing import TYPE_CHECKING

from tokenbus.producer.errors import ChildFailed
from tokenbus.producer.serving import told_lines
from tokenbus.producer.serving.served_child import ChildEnded, ChildSaid, ServedChild

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

# Wrong input, the code of the command line: starting again would end the same way.
_WRONG_INPUT = 2
FIRST_PAUSE_S, MAX_PAUSE_S = 0.5, 30.0
# One that ran for so long did not fail to start.
_STEADY_S = 60.0
# In a row; at that pause it has failed for three minutes.
MAX_FAILURES = 10
_MAX_LINES = 50


class _Stop:
    """Somebody asks for the end."""


class ChildSupervisor:
    """Keeps several commands running in child processes until it is asked to stop.

    `tell` hears lines for a person. A child is ready once its log says that it has started.
    `is_verbose` passes its whole log on.
    """

    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        environment: Mapping[str, str],
        tell: Callable[[str], None],
        *,
        is_verbose: bool = False,
    ) -> None:
        self._events: queue.SimpleQueue[object] = queue.SimpleQueue()
        self._children = {
            name: ServedChild(name, words, environment, self._events)
            for name, words in commands.items()
        }
        self._tell = tell
        self._is_verbose = is_verbose
        self._unready = set(commands)
        self._settled = threading.Event()
        self._failures = dict.fromkeys(commands, 0)
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
        self._settled.wait()
        if self._unready:
            raise self._failure or ChildFailed("stopped before it was ready")

    def run(self, on_ready: Callable[[], None] = lambda: None) -> None:
        """Run until asked to stop, and leave no child behind.

        `on_ready` is called once, when all are ready for the first time.
        Raises: ChildFailed with the reason of a child that cannot be kept running.
        """
        try:
            for child in self._children.values():
                child.start()
            while self._is_needed():
                self._take(self._next_event())
                if not self._unready and not self._settled.is_set():
                    on_ready()
                    self._settled.set()
            if self._failure is not None:
                raise self._failure
        finally:
            self._end_all()
            self._settled.set()

    def _is_needed(self) -> bool:
        if self._num_stops == 0:
            return True
        return any(child.is_running for child in self._children.values())

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
        told = line if self._is_verbose else told_lines.told(line)
        if told is not None:
            self._tell(f"{name}: {told}")

    def _ended(self, event: ChildEnded) -> None:
        name = event.name
        if self._num_stops:
            self._pass_stop_on()
            return
        reason = f"{name} ended with {_shown(event.code)}{self._reason(name)}"
        self._failures[name] = 1 if event.ran_s > _STEADY_S else self._failures[name] + 1
        is_wrong = event.code == _WRONG_INPUT
        if not self._settled.is_set() or is_wrong or self._failures[name] > MAX_FAILURES:
            self._failure = ChildFailed(reason, is_wrong_input=is_wrong)
            self._num_stops += 1
            self._pass_stop_on()
            return
        pause_s = min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** (self._failures[name] - 1))
        self._tell(f"{reason}; it starts again in {pause_s:g} s")
        self._restarts[name] = time.monotonic() + pause_s

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
            self._last_lines[name] = []
            self._children[name].start()

    def _pass_stop_on(self, *, is_asked_again: bool = False) -> None:
        """Signal the first child that still runs, or all of them where the stop is urgent."""
        self._restarts.clear()
        running = [child for child in self._children.values() if child.is_running]
        if self._num_stops == 1:
            running = running[:1]
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
