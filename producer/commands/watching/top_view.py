"""The view of `tokenbus top`: the figures of a pool as tables that fit the terminal."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

from tokenbus.producer.client.watching.conditions import Level, conditions_of
from tokenbus.producer.client.worker_status import WorkerPhase
from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import Console, ConsoleOptions, RenderableType

    from tokenbus.producer.client.pool_figures import LaneFigures, PoolFigures
    from tokenbus.producer.client.watching.ended_jobs import EndedFigures
    from tokenbus.producer.client.watching.pool_watch import PoolSight
    from tokenbus.producer.client.worker_status import PageFigures, WorkerStatus

_COLOURS = {Level.BAD: "bold red", Level.WARNING: "yellow", Level.NOTE: "cyan"}
_PHASES = {
    WorkerPhase.READY: "green",
    WorkerPhase.STARTING: "cyan",
    WorkerPhase.DRAINING: "yellow",
    WorkerPhase.DOWN: "bold red",
}
_BARS = " ▁▂▃▄▅▆▇█"
# Looks that the small curves show.
_NUM_LOOKS = 40
# Seats of a worker, and fewer where the terminal is narrow; there it shows less of each, too.
_SEATS, _FEW_SEATS, _NARROW = 24, 12, 100
# Lines of the screen that are neither worker nor lane.
_MIN_ROWS = 3


class TopView:
    """The last look at a pool, and of some figures those before it; rich renders it."""

    def __init__(self) -> None:
        self._sight: PoolSight | None = None
        self._lost = ""
        self._tokens: deque[float] = deque(maxlen=_NUM_LOOKS)
        self._waiting: deque[float] = deque(maxlen=_NUM_LOOKS)

    def see(self, sight: PoolSight) -> None:
        """Show a new look."""
        self._sight, self._lost = sight, ""
        self._tokens.append(sight.figures.generated_tokens_per_s)
        self._waiting.append(sight.figures.status.waiting_jobs)

    def lose(self, why: str) -> None:
        """Say above the last look that there is none now."""
        self._lost = why

    def __rich_console__(self, _: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """Yield the parts, from the top of the screen down."""
        sight = self._sight
        if sight is None:
            return
        figures = sight.figures
        yield self._head(figures)
        if self._lost:
            yield Text(visible(self._lost), "bold red")
        conditions = conditions_of(sight)[:4]
        for each in conditions:
            yield Text(visible(each.told), _COLOURS[each.level])
        is_narrow = options.max_width < _NARROW
        yield self._figures(sight, padding=1 if is_narrow else 3)
        left = (options.height or 1000) - len(conditions) - bool(self._lost) - 16
        num_workers = max(_MIN_ROWS, left - min(len(figures.lanes), left // 2))
        num_lanes = max(_MIN_ROWS, left - min(len(figures.workers), num_workers))
        yield _fleet(sight, num_workers, is_narrow=is_narrow)
        yield _queue(figures, num_lanes)

    def _head(self, figures: PoolFigures) -> Text:
        head = Text.assemble(
            ("tokenbus ", "bold"),
            (visible(figures.pool), "bold cyan"),
            f"  {visible(figures.model)}" if figures.model else "",
        )
        if figures.status.paused_for_s is not None:
            head.append(f"  PAUSED {_seconds(figures.status.paused_for_s)}", "black on yellow")
        return head

    def _figures(self, sight: PoolSight, padding: int) -> Table:
        figures, status = sight.figures, sight.figures.status
        table = Table.grid(padding=(0, padding))
        ended = sight.ended
        table.add_row(
            _figure("waiting", f"{status.waiting_jobs:,}", _curve(self._waiting)),
            _figure("backlog", _seconds(figures.seconds_of_backlog)),
            _figure("oldest", _seconds(figures.oldest_age_s)),
            _figure("running", f"{status.held_jobs:,}"),
        )
        table.add_row(
            _figure("tokens/s", f"{figures.generated_tokens_per_s:,.0f}", _curve(self._tokens)),
            _figure("prompt/s", f"{figures.prompt_tokens_per_s:,.0f}"),
            _figure("ended/min", f"{60 * ended.jobs_per_s:,.0f}", _reasons(ended)),
            _figure("dead letters", f"{sight.num_letters:,}"),
        )
        latencies = [
            _figure(told, _latency(ended, name))
            for name, told in (
                ("ttft", "first token"),
                ("queue", "in queue"),
                ("itl", "between tokens"),
                ("e2e", "whole"),
            )
        ]
        table.add_row(*latencies)
        return table


def _figure(name: str, value: str, beside: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, "bold"), f" {beside}" if beside else "")


def _fleet(sight: PoolSight, most: int, *, is_narrow: bool) -> Table:
    workers = sight.figures.workers
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    for name, justify in (("WORKER", "left"), ("PHASE", "left"), ("SEATS", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]  # a literal
    names = ("PAGES", "JOBS", "RUN", "TOK/S") + (() if is_narrow else ("VERSION", "UP"))
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for lost in sorted({*sight.lost, *sight.left}):
        left = str(sight.left.get(lost, 0))
        table.add_row(visible(lost), Text("lost", "bold red"), "", "", left)
    shown = workers if len(workers) <= most else workers[: most - 1]
    for worker in shown:
        is_drained = worker.name in sight.drained_ms
        cells = _worker(worker, is_drained=is_drained, seats=_FEW_SEATS if is_narrow else _SEATS)
        table.add_row(*cells[: len(table.columns)])
    if len(shown) < len(workers):
        table.add_row(Text(f"… {len(workers) - len(shown)} more", "dim"))
    if not workers and not sight.lost and not sight.left:
        table.add_row(Text("no worker lives", "bold red"))
    return table


def _worker(worker: WorkerStatus, *, is_drained: bool, seats: int) -> list[RenderableType]:
    phase = Text(worker.phase.value, _PHASES[worker.phase])
    if is_drained:
        phase = Text("drained", "yellow")
    elif worker.phase is WorkerPhase.STARTING and worker.percent:
        phase.append(f" {worker.percent} %")
    pages = worker.pages
    return [
        visible(worker.name),
        phase,
        _seats(pages, seats) if pages else visible(worker.phase_told),
        f"{pages.held + pages.shared:,}/{pages.total:,}" if pages else "",
        str(worker.held_jobs),
        "" if worker.running is None else str(worker.running),
        "" if worker.tokens_per_s is None else f"{worker.tokens_per_s:,.0f}",
        visible(worker.version or ""),
        "" if worker.uptime_s is None else _seconds(worker.uptime_s),
    ]


def _seats(pages: PageFigures, most: int) -> Text:
    """Draw the pages as so many seats: held, shared, cached and free."""
    text, taken, total = Text(), 0, max(1, pages.total)
    parts = (
        (pages.held, "█", "blue"),
        (pages.shared, "█", "yellow"),
        (pages.cached, "▒", "dim blue"),
    )
    for number, seat, style in parts:
        seats = min(most - taken, max(number > 0, round(most * number / total)))
        text.append(seat * seats, style)
        taken += seats
    text.append("·" * (most - taken), "dim")
    return text


def _queue(figures: PoolFigures, most: int) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
    table.add_column("PRIORITY  TENANT", no_wrap=True)
    for name in ("WAITING", "TOKENS", "RUNNING", "OLDEST"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in figures.priorities:
        if each.waiting_jobs or each.held_jobs:
            table.add_row(
                Text(f"{each.priority}", "bold"),
                *_counts(each.waiting_jobs, each.waiting_tokens, each.held_jobs, each.oldest_age_s),
            )
    lanes = sorted(figures.lanes, key=lambda lane: -(lane.waiting_jobs + lane.held_jobs))
    for lane in lanes[:most]:
        table.add_row(*_lane(lane, figures))
    if len(lanes) > most:
        table.add_row(Text(f"… {len(lanes) - most} more", "dim"))
    return table


def _lane(lane: LaneFigures, figures: PoolFigures) -> list[str]:
    tokens = figures.tenant_waiting_tokens.get(lane.tenant, 0)
    counts = _counts(lane.waiting_jobs, tokens, lane.held_jobs, lane.oldest_age_s)
    return [f"{lane.priority}         {visible(lane.tenant)}", *counts]


def _counts(waiting: int, tokens: int, held: int, oldest_s: float | None) -> list[str]:
    oldest = "" if oldest_s is None else _seconds(oldest_s)
    return [f"{waiting:,}", f"{tokens:,}", f"{held:,}", oldest]


def _latency(ended: EndedFigures, name: str) -> str:
    found = ended.latencies.get(name)
    return "-" if found is None else f"{_ms(found.p50_ms)} / {_ms(found.p95_ms)}"


def _reasons(ended: EndedFigures) -> str:
    told = [
        f"{number} {reason}"
        for reason, number in ended.reasons.items()
        if reason not in ("stop", "length")
    ]
    return ", ".join(told)


def _curve(values: Iterable[float]) -> str:
    """Draw values as bars in one line, the highest one full."""
    shown = list(values)
    most = max(shown, default=0)
    if most <= 0 or len(shown) < 2:
        return ""
    return "".join(_BARS[round((len(_BARS) - 1) * value / most)] for value in shown)


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if value < 1000 else _seconds(value / 1000)


def _seconds(value: float) -> str:
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    minutes = int(value // 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h"
