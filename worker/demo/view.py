"""The view of the ride: the bus with its seats in a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, Self

from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from types import TracebackType

    from rich.console import Console, RenderableType

# A rate over less than this jumps with every step; over more it lags behind the eye.
RATE_WINDOW_S = 2.0
NUM_ANSWERS_SHOWN = 6
SEAT_ROWS = 3
# Seats are drawn up to this width, so that the panel fits a terminal of 80 columns.
SEAT_COLUMNS = 72
TEAM_COLUMNS = 14
# Borders and padding of the panel, and the gap after the team.
FRAME_COLUMNS = 6


@dataclass(slots=True)
class Answer:
    """An answer as far as it has come."""

    team: str
    question: str
    text: str = ""
    started: bool = False
    ended: bool = False


@dataclass(slots=True)
class BusState:
    """The bus at one moment; counters are filled in by the ride, gauges by the worker."""

    answers: list[Answer]
    elapsed_s: float = 0.0
    num_tokens: int = 0
    num_pages: int = 0
    pages_in_use: int = 0
    pages_cached: int = 0
    num_running: int = 0
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    @property
    def num_ended(self) -> int:
        """Jobs that have their terminal event."""
        return sum(answer.ended for answer in self.answers)

    @property
    def num_waiting(self) -> int:
        """Jobs in the queue: neither ended nor in the running batch."""
        return max(0, len(self.answers) - self.num_ended - self.num_running)

    def advance(self, elapsed_s: float) -> None:
        """Move the clock, for the rate."""
        self.elapsed_s = elapsed_s
        self._history.append((elapsed_s, self.num_tokens))
        while len(self._history) > 1 and self._history[1][0] <= elapsed_s - RATE_WINDOW_S:
            self._history.popleft()

    @property
    def tokens_per_s(self) -> float:
        """Tokens received per second over the last window."""
        if len(self._history) < 2:
            return 0.0
        (start_s, before), (end_s, after) = self._history[0], self._history[-1]
        return (after - before) / (end_s - start_s) if end_s > start_s else 0.0


class View(Protocol):
    """Shows a state again and again while it is open as a context manager."""

    interval_s: float

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the last state on the screen."""
        ...

    def show(self, state: BusState) -> None:
        """Show the state now."""
        ...


class PlainView:
    """One line a second, for logs and pipes."""

    interval_s = 1.0

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        """Begin with nothing."""
        return self

    def __exit__(self, *_: object) -> None:
        """End with nothing: every line stands for itself."""

    def show(self, state: BusState) -> None:
        """Print one line."""
        self._console.print(
            f"{state.elapsed_s:6.1f} s  {state.num_running:3d} on board  "
            f"{state.num_waiting:3d} waiting  {state.num_ended:3d}/{len(state.answers)} done  "
            f"pages {state.pages_in_use}/{state.num_pages}  "
            f"{state.num_tokens:5d} tokens  {state.tokens_per_s:6.1f} tok/s",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )


class LiveView:
    """The bus, redrawn a few times a second; drawing more often would cost the engine its cores."""

    interval_s = 0.25

    def __init__(self, console: Console, title: str) -> None:
        self._title = title
        self._live = Live(console=console, auto_refresh=False)

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back with the last picture on it."""
        self._live.__exit__(kind, error, trace)

    def show(self, state: BusState) -> None:
        """Draw the state."""
        picture = draw_bus(state, self._title, self._live.console.width)
        self._live.update(picture, refresh=True)


def draw_bus(state: BusState, title: str, width: int) -> RenderableType:
    """Draw seats, counters and the newest answers as one panel, `width` characters wide."""
    counters = Text.assemble(
        (f"{state.num_running}", "bold green"), " on board   ",
        (f"{state.num_waiting}", "bold yellow"), " at the stop   ",
        (f"{state.num_ended}", "bold cyan"), f" of {len(state.answers)} arrived   ",
        (f"{state.tokens_per_s:.0f}", "bold"), f" tok/s   {state.num_tokens} tokens   ",
        f"{state.elapsed_s:.0f} s",
    )  # fmt: skip
    text_columns = max(1, width - TEAM_COLUMNS - FRAME_COLUMNS)
    answers = Table.grid(padding=(0, 1), expand=True)
    answers.add_column(no_wrap=True, style="dim", width=TEAM_COLUMNS)
    answers.add_column(no_wrap=True, ratio=1)
    for answer in _answers_to_show(state.answers):
        style = "dim" if answer.ended else ""
        answers.add_row(
            answer.team, Text(_tail(answer.text, text_columns), style=style, overflow="crop")
        )
    seats = f"pages: {state.pages_in_use} taken, {state.pages_cached} kept for later, "
    seats += f"{state.num_pages} in all"
    body = Group(draw_seats(state), Text(seats, style="dim"), Text(), counters, Text(), answers)
    return Panel(body, title=title, title_align="left", border_style="blue")


def draw_seats(state: BusState) -> Text:
    """Draw the page pool as rows of seats: taken, cached, free; a seat may stand for many pages."""
    num_seats = min(state.num_pages, SEAT_ROWS * SEAT_COLUMNS)
    if not num_seats:
        return Text("no pages yet", style="dim")
    per_seat = state.num_pages / num_seats
    taken = _seats(state.pages_in_use, per_seat)
    cached = min(_seats(state.pages_cached, per_seat), num_seats - taken)
    seats = Text(overflow="fold")
    seats.append("■" * taken, style="green")
    seats.append("■" * cached, style="blue")
    seats.append("·" * (num_seats - taken - cached), style="dim")
    lines = seats.divide(range(SEAT_COLUMNS, num_seats, SEAT_COLUMNS))
    return Text("\n").join(lines)


def _seats(num_pages: int, pages_per_seat: float) -> int:
    """Seats that so many pages take: at least one if there is any page."""
    return max(round(num_pages / pages_per_seat), int(num_pages > 0))


def _answers_to_show(answers: list[Answer]) -> list[Answer]:
    """Choose growing answers first, then ended ones, in the order of their jobs."""
    growing = [answer for answer in answers if answer.started and not answer.ended]
    ended = [answer for answer in answers if answer.ended]
    return (growing + ended)[:NUM_ANSWERS_SHOWN]


def _tail(text: str, width: int) -> str:
    """The last words of a text on one line."""
    line = " ".join(visible(text, lines=True).split())
    return line if len(line) <= width else "…" + line[1 - width :]
