"""The page of requests has every field of a job, with the defaults and bounds of the schema."""

from __future__ import annotations

from house.modules import ROOT
from house.request_page import columns

PAGE = (ROOT / "docs" / "requests.md").read_text(encoding="utf-8")


def test_fields_of_a_job_are_those_of_the_schema() -> None:
    """Each once, with its default, what it may be, and what it means."""
    section = PAGE.partition("\n## The fields of a job\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line[:3] == "| `"]
    assert {name.strip("`"): (default, values) for name, default, values, _ in rows} == columns()
    assert len(rows) == len(columns())
    assert all(meaning for *_, meaning in rows)
