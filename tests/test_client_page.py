"""The page of the client's calls and the code name the same ones."""

from __future__ import annotations

import inspect
import re

import pytest
from house.modules import ROOT

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer import AsyncClient, Client, Event, Job, JobResult
from tokenbus.producer.client.pool_status import PoolStatus

PAGE = (ROOT / "docs" / "client-api.md").read_text(encoding="utf-8")
CALLS = re.findall(r"`(\w+)\(([\w*, ]*)\)`", PAGE.partition("## Calls")[2].partition("\n## ")[0])
FIELDS = [
    (kind, name)
    for kind, names in re.findall(r"(?m)^\| `(\w+)` \| (.+?) \|", PAGE)
    for name in re.findall(r"`(\w+)`", names)
]
RETURNED = {each.__name__: each for each in (Event, Job, JobResult, PoolStatus, Usage)}


def test_every_call_of_the_client_has_a_row() -> None:
    """The blocking client's calls are on the page, and the async one has each of them."""
    public = {name for name, _ in inspect.getmembers(Client, callable) if not name.startswith("_")}
    assert {name for name, _ in CALLS} == public
    assert all(callable(getattr(AsyncClient, name)) for name in public)


@pytest.mark.parametrize(("name", "arguments"), CALLS)
def test_arguments_are_those_of_the_call(name: str, arguments: str) -> None:
    """What the page names between parentheses can be given, in that order."""
    known = [
        "job" if parameter == "job_id" else parameter
        for parameter in inspect.signature(getattr(AsyncClient, name)).parameters
    ]
    told = [argument.strip("* ") for argument in arguments.split(",") if argument.strip()]
    assert [each for each in known if each in told] == told


@pytest.mark.parametrize(("kind", "name"), FIELDS)
def test_field_of_what_is_returned_exists(kind: str, name: str) -> None:
    """Each field in a row is one of its class."""
    assert name in dir(RETURNED[kind])
