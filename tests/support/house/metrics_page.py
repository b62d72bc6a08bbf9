"""The tables of `docs/metrics.md`: made of the declarations of the metrics.

Run as a script it writes them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from house.pages import with_table

from tokenbus.producer.telemetry.control_table import CONTROL, POOL
from tokenbus.producer.telemetry.gateway_table import GATEWAY
from tokenbus.producer.telemetry.worker_table import WORKER

if TYPE_CHECKING:
    from tokenbus.producer.telemetry.metric import MetricTable

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"
# A table stands under the heading of its name.
TABLES = {"Worker": WORKER, "Pool": POOL, "Control": CONTROL, "Gateway": GATEWAY}


def rows(table: MetricTable) -> str:
    """Return a table as Markdown."""
    lines = ["| metric | kind, unit | labels | meaning |", "|---|---|---|---|"]
    for metric in table.metrics:
        labels = ", ".join(f"`{label}`" for label in (*table.labels, *metric.labels))
        unit = f"{metric.kind}, {metric.unit}"
        lines.append(f"| `{metric.name}` | {unit} | {labels or 'none'} | {metric.help} |")
    return "\n".join(lines) + "\n"


def written() -> str:
    """Return the page with its tables as the code has them."""
    text = PAGE.read_text(encoding="utf-8")
    for heading, table in TABLES.items():
        text = with_table(text, heading, rows(table))
    return text.rstrip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(written(), encoding="utf-8")
