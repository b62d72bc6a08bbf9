"""The page of metrics and the code say the same."""

from __future__ import annotations

import re

import pytest
from house import metrics_page
from house.metrics_page import PAGE, TABLES

from tokenbus.producer.telemetry.metric import Kind

METRICS = {metric.name: metric for table in TABLES.values() for metric in table.metrics}


def test_page_is_made_of_the_declarations() -> None:
    """Every metric stands on the page as it is declared; `house.metrics_page` writes it."""
    assert metrics_page.written() == PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("page", sorted(PAGE.parent.glob("*.md")), ids=lambda page: page.name)
def test_metrics_that_pages_name_exist(page: object) -> None:
    """What a page calls a metric is one, or a series of one."""
    text = PAGE.parent.joinpath(str(page)).read_text(encoding="utf-8")
    known = set(METRICS) | {name.removesuffix("_total") for name in METRICS}
    known |= {
        f"{name}{part}"
        for name, metric in METRICS.items()
        if metric.kind is Kind.HISTOGRAM
        for part in ("_bucket", "_count", "_sum")
    }
    named = set(re.findall(r"`(tokenbus_[a-z_0-9]+)(?:\{[^`]*)?`", text))
    named |= set(re.findall(r"\b(tokenbus_[a-z_0-9]+)[\[{]", text))
    assert named <= known, named - known


def test_names_tell_kind_and_unit() -> None:
    """Counters end in `_total`, times in `_seconds`, and each name has one meaning."""
    seen: dict[str, tuple[Kind, str]] = {}
    for table in TABLES.values():
        for metric in table.metrics:
            assert re.fullmatch(r"tokenbus_[a-z0-9_]+", metric.name)
            assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
            if metric.unit == "seconds":
                assert "_seconds" in metric.name
            assert seen.setdefault(metric.name, (metric.kind, metric.help)) == (
                metric.kind,
                metric.help,
            )
