"""The page of incidents: a section for each that the dashboard tells, served as it is written."""

from __future__ import annotations

import ast
import inspect

from house import incidents_page
from house.drills import drills, sections
from house.modules import parsed

from tokenbus.producer.client.watching import conditions


def test_every_condition_has_its_section() -> None:
    """Each word of a condition is a heading, and no heading is left without one."""
    calls = [
        node
        for node in ast.walk(parsed(inspect.getsource(conditions)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "Condition"
    ]
    codes = {ast.literal_eval(call.args[1]) for call in calls}
    _pool, *headings = sections()
    assert codes == set(headings)
    assert len(drills()) == 6


def test_gateway_serves_the_page_as_it_is_written() -> None:
    """The file beside the dashboard is made of docs/incidents.md by `house.incidents_page`."""
    assert incidents_page.PAGE.read_text(encoding="utf-8") == incidents_page.written()
