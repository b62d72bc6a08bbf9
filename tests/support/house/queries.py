"""Queries of Prometheus, read by the library that knows their language, and what they name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import promql_parser

from tokenbus.producer.telemetry.control_table import CONTROL, POOL
from tokenbus.producer.telemetry.gateway_table import GATEWAY
from tokenbus.producer.telemetry.metric import Kind
from tokenbus.producer.telemetry.worker_table import WORKER

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS = ("expr", "lhs", "rhs", "args", "vector_selector", "param")
_OF_HISTOGRAMS = ("_bucket", "_count", "_sum")


@dataclass(frozen=True, slots=True)
class Named:
    """A metric that a query reads, with the labels that its selector names."""

    metric: str
    labels: frozenset[str]


def series() -> dict[str, frozenset[str]]:
    """Return the name of every series that our processes have, with its labels."""
    found: dict[str, frozenset[str]] = {}
    for table in (WORKER, CONTROL, POOL, GATEWAY):
        for metric in table.metrics:
            labels = frozenset((*table.labels, *metric.labels))
            names = [metric.name]
            if metric.kind is Kind.HISTOGRAM:
                names = [f"{metric.name}{part}" for part in _OF_HISTOGRAMS]
                labels |= {"le"}
            for name in names:
                found[name] = found.get(name, frozenset()) | labels
    return found


def read_query(text: str) -> tuple[list[Named], frozenset[str]]:
    """Return the metrics that a query selects, and the labels that it sums or joins by.

    Variables of a board are filled in first. Raises: ValueError for what is no query.
    """
    filled = text.replace("$__rate_interval", "1m").replace("$pool", "default")
    nodes = list(_walk(promql_parser.parse(filled)))
    named = [
        Named(str(node.name), frozenset(each.name for each in node.matchers.matchers))
        for node in nodes
        if isinstance(node, promql_parser.VectorSelector)
    ]
    by: set[str] = set()
    for node in nodes:
        modifier = getattr(node, "modifier", None)
        by |= set(getattr(modifier, "labels", None) or ())
    return named, frozenset(by)


def unknown_parts(text: str) -> list[str]:
    """Return what of a query no process of ours tells: metrics, and labels of those it reads."""
    known = series()
    named, by = read_query(text)
    wrong = [each.metric for each in named if each.metric not in known]
    read = [each for each in named if each.metric in known]
    wrong += [
        f"{each.metric}{{{label}}}"
        for each in read
        for label in sorted(each.labels - known[each.metric])
    ]
    have = frozenset().union(*(known[each.metric] for each in read))
    return wrong + [f"by ({label})" for label in sorted(by - have)]


def _walk(node: Any) -> Iterator[Any]:
    yield node
    for part in _PARTS:
        inner = getattr(node, part, None)
        if inner is not None:
            for each in inner if isinstance(inner, list | tuple) else [inner]:
                yield from _walk(each)
