"""Files of a report: JSON for programs, one HTML page for people."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokenbus.worker.bench.measure.figures import as_json
from tokenbus.worker.bench.measure.page import page

if TYPE_CHECKING:
    from tokenbus.worker.bench.measure.report import Report


def write_report(report: Report, json: str | None, html: str | None) -> None:
    """Write the files that were asked for."""
    if json is not None:
        Path(json).write_bytes(as_json(report))
    if html is not None:
        Path(html).write_text(page(report))
