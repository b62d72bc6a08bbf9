"""A report as one HTML page without anything to load."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from tokenbus.worker.bench.measure.charts import Line, chart
from tokenbus.worker.bench.measure.report import extra_lines
from tokenbus.worker.bench.measure.tables import DISTRIBUTIONS, MARKS, distributions, marks, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.worker.bench.measure.figures import Figures
    from tokenbus.worker.bench.measure.report import Report

# Tenants beyond these are left out of the page; the JSON has them all.
_MAX_GROUPS = 40
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1340px;margin:2em auto;padding:0 1em}
h1{font-size:1.4em}h2{font-size:1.1em;margin-top:2em}
table{border-collapse:collapse;margin:.5em 0}td,th{padding:.15em .8em;text-align:right}
td:first-child,th:first-child{text-align:left}tr{border-bottom:1px solid #8884}
.charts{display:grid;grid-template-columns:repeat(auto-fit,minmax(440px,1fr));gap:1em}
svg{width:100%;font-size:11px}svg text{fill:currentColor}svg .title{font-size:13px;font-weight:600}
.end{text-anchor:end}.mid{text-anchor:middle}.grid{stroke:#8883}.line{fill:none;stroke-width:1.6}
pre{white-space:pre-wrap}:root{color-scheme:light dark}
"""


def page(report: Report) -> str:
    """Write a report as HTML; curves and tables are those of the fastest run."""
    figures = report.best
    single = "".join(_html_row(row) for row in rows(figures))
    headed = [("ms", *MARKS)]
    latencies = [
        (label, *(f"{value:.2f}" for value in marks(sample)))
        for sample, label in distributions(figures)
    ]
    machine = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    extra = "".join(f"<p>{escape(line)}</p>" for line in extra_lines(report))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>tokenbus bench pool</title>"
        f"<style>{_STYLE}</style><h1>tokenbus bench pool</h1>"
        f"<pre>{escape(' '.join(report.command))}</pre><p>{escape(machine)}</p>{extra}"
        f"<table>{single}</table><div class=charts>{''.join(_charts(figures))}</div>"
        f"<h2>Latency</h2><table>{''.join(map(_html_row, headed + latencies))}</table>"
        + _groups(figures)
        + "".join(f"<pre>{escape(fault)}</pre>" for fault in figures.faults)
    )


def _charts(figures: Figures) -> Iterator[str]:
    samples = figures.samples
    end_s = max((sample.at_s for sample in samples), default=0.0)
    rates = [(at_s + 0.5, rate) for at_s, rate in figures.tokens_by_second]
    yield chart("Tokens per second at the readers", "s", [Line("tokens/s", rates)], max_x=end_s)
    waiting = Line("waiting", [(s.at_s, s.waiting_jobs) for s in samples], stepped=True)
    running = Line("running", [(s.at_s, s.running) for s in samples], stepped=True)
    yield chart("Jobs", "s", [waiting, running], max_x=end_s)
    used = Line("in use", [(s.at_s, s.pages_used) for s in samples], stepped=True)
    cached = Line("cached, free to take", [(s.at_s, s.pages_cached) for s in samples], stepped=True)
    total = Line("all", [(s.at_s, s.pages_total) for s in samples], stepped=True)
    yield chart("KV pages", "s", [used, cached, total], max_x=end_s)
    latencies = [
        Line(DISTRIBUTIONS[name], points) for name, points in figures.cdf_ms.items() if points
    ]
    yield chart("Share of the sample that took at most", "ms", latencies, log_x=True)


def _groups(figures: Figures) -> str:
    parts = []
    for title, groups in (
        ("Phases and priorities", figures.by_phase_and_priority),
        ("Tenants", figures.by_tenant),
    ):
        head = ("", "jobs", "finished", "tokens", "TTFT p50 ms", "TTFT p95 ms", "E2E p95 ms")
        lines = [
            (
                name,
                str(group.jobs),
                str(group.finished),
                str(group.output_tokens),
                f"{group.ttft_ms.p50:.1f}",
                f"{group.ttft_ms.p95:.1f}",
                f"{group.e2e_ms.p95:.1f}",
            )
            for name, group in list(groups.items())[:_MAX_GROUPS]
        ]
        table = "".join(_html_row(row) for row in [head, *lines])
        parts.append(f"<h2>{title}</h2><table>{table}</table>")
    return "".join(parts)


def _html_row(cells: tuple[str, ...]) -> str:
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
