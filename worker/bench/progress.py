"""Progress of a run: a bar in a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console

    from tokenbus.worker.bench.run import RunState

_LINE_EVERY_S = 5.0


class RunProgress:
    """Shows the states of one run; as a context manager it begins and ends the display."""

    def __init__(self, console: Console, title: str, *, plain: bool) -> None:
        self._console = console
        self._title = title
        self._began_s = time.monotonic()
        self._line_at_s = self._began_s + _LINE_EVERY_S
        self._task: TaskID | None = None
        self._bar: Progress | None = None
        if console.is_terminal and not plain:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TimeElapsedColumn(),
                TextColumn("{task.fields[line]}"),
                console=console,
                transient=True,
            )

    def __enter__(self) -> Self:
        """Begin."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self._title, total=None, line="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def show(self, state: RunState) -> None:
        """Show a state."""
        elapsed_s = time.monotonic() - self._began_s
        if self._bar is not None and self._task is not None:
            total, done = _share(state, elapsed_s)
            self._bar.update(self._task, total=total, completed=done, line=_line(state))
        elif time.monotonic() >= self._line_at_s:
            self._line_at_s += _LINE_EVERY_S
            self._console.print(f"{elapsed_s:7.1f} s  {self._title}  {_line(state)}")


def _share(state: RunState, elapsed_s: float) -> tuple[float, float]:
    """Return what makes the bar full and how much of it is done: jobs, else time."""
    if state.num_jobs is None:
        return state.span_s, min(elapsed_s, state.span_s)
    return state.num_jobs, state.num_submitted - state.num_open


def _line(state: RunState) -> str:
    sample = state.sample
    pool = ""
    if sample is not None:
        pool = f"  {sample.waiting_jobs} wait  pages {sample.pages_used}/{sample.pages_total}"
    ended = state.num_submitted - state.num_open
    return f"{ended} ended  {state.num_open} open{pool}  {state.num_tokens} tokens"
