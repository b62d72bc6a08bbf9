"""The end of the demo: a table for the reader and the same figures as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.table import Table

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.worker.demo.figures import BusFigures
    from tokenbus.worker.demo.taxi import TaxiRide


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The bus, and the taxi if it was driven."""

    bus: BusFigures
    taxi: TaxiRide | None = None

    @property
    def ratio(self) -> float | None:
        """Tokens/s of the bus over those of the taxi; None without a taxi."""
        return round(self.bus.tokens_per_s / self.taxi.tokens_per_s, 2) if self.taxi else None

    def dump(self) -> str:
        """Return the figures as one JSON object; those of a taxi that was skipped are null."""
        taxi_tokens_per_s = round(self.taxi.tokens_per_s, 2) if self.taxi else None
        figures = asdict(self.bus) | {"taxi_tokens_per_s": taxi_tokens_per_s, "ratio": self.ratio}
        return json.dumps(figures, indent=2) + "\n"

    def write(self, path: Path) -> None:
        """Write the figures to a file."""
        path.write_text(self.dump(), encoding="utf-8")


def bus_table(bus: BusFigures) -> Table:
    """Lay out the bus ride; every time is taken by the reader's clock."""
    table = Table(title="The bus", title_justify="left", show_header=False, box=None)
    table.add_column(style="dim")
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_row("jobs finished", f"{bus.finished} of {bus.jobs}")
    table.add_row("output tokens", f"{bus.output_tokens}")
    table.add_row("tokens/s", f"{bus.tokens_per_s:.1f}")
    for name, sample in (("TTFT", bus.ttft_ms), ("ITL", bus.itl_ms)):
        table.add_row(name, f"p50 {sample.p50:.0f} ms", f"p95 {sample.p95:.0f} ms")
    table.add_row("peak jobs in the batch", f"{bus.peak_running}")
    table.add_row("prefix-cache hits", f"{bus.prefix_hit_rate:.0%} of prompt tokens")
    return table


def taxi_lines(report: DemoReport, num_threads: int, dtype: str) -> list[str]:
    """Say how the taxi was driven, how fast it was and what that makes the bus."""
    taxi = report.taxi
    if taxi is None:
        return []
    return [
        "The taxi: transformers generate, one job at a time",
        f"  {taxi.attention} attention, {dtype}, {num_threads} threads, "
        f"the first {taxi.num_jobs} of {report.bus.jobs} jobs",
        f"  {taxi.output_tokens} tokens in {taxi.seconds:.1f} s = {taxi.tokens_per_s:.1f} tokens/s",
        f"The bus is {report.ratio:.1f}x as fast "
        f"({report.bus.tokens_per_s:.1f} against {taxi.tokens_per_s:.1f} tokens/s)",
    ]
