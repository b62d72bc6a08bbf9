"""Watched answers: where JSON stands in an answer whose keys a grammar cannot watch itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class WatchedTags:
    """Arguments between tags: the name of none comes twice in a call.

    call: stands before the name of a call.
    open: stands before the name of an argument.
    name_closes: what may stand between name and value.
    string_close: that of them which says that a string follows, "" if none does.
    close: stands behind a value.
    texts: by tool the arguments that are strings alone, in which anything may come twice.
    """

    call: str
    open: str
    name_closes: tuple[str, ...]
    string_close: str
    close: str
    texts: dict[str, list[str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class WatchedLists:
    """Lists in which no item may come twice, in schemas that the writer has marked.

    content: the schema of content; None if it asks for no such list.
    tools: by their names the schemas of arguments that ask for one.
    name_keys, arguments_keys: of calls that are objects of JSON; without `name_keys` the name
        itself is the key of the arguments.
    names: of all tools, where a name stands before its arguments: behind `lead`, without white
        space, and `name_prefix`.
    """

    content: Any = None
    tools: dict[str, Any] = field(default_factory=dict)
    name_keys: list[str] = field(default_factory=list)
    arguments_keys: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    lead: str = ""
    name_prefix: str = ""


@dataclass(frozen=True, slots=True)
class WatchedAnswer:
    """What stands where in an answer, in plain values that travel as JSON.

    White space in marks may differ.
    opens, closes: marks of reasoning.
    is_closed_by_calls: the marks of calls close reasoning too.
    starts_inside: the answer begins in reasoning.
    has_channels: it is a row of messages, each behind a header (gpt-oss).
    frame: marks around the answer, which say nothing.
    marks: calls stand behind them, up to the end.
    head: pattern with which calls begin that have no mark, "" if all have one.
    is_json: the answer is JSON by a schema, unless calls take its place.
    barred: marks that must not stand in such JSON: a reader would drop them, or read calls there.
    may_be_python: calls that do not begin as JSON are expressions of Python.
    quote: the mark around strings where arguments are objects with bare keys.
    tags: there where arguments stand between tags; otherwise they are JSON.
    lists: those that are followed, None if there are none.
    """

    opens: tuple[str, ...] = ()
    closes: tuple[str, ...] = ()
    is_closed_by_calls: bool = False
    starts_inside: bool = False
    has_channels: bool = False
    frame: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()
    head: str = ""
    is_json: bool = False
    barred: tuple[str, ...] = ()
    may_be_python: bool = False
    quote: str = ""
    tags: WatchedTags | None = None
    lists: WatchedLists | None = None

    def dump(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> WatchedAnswer:
        """Read what `dump` wrote."""
        given = json.loads(text)
        tags, followed = given.pop("tags"), given.pop("lists", None)
        names = ("opens", "closes", "frame", "marks", "barred")
        lists: dict[str, Any] = {name: tuple(given.pop(name, ())) for name in names}
        if tags is not None:
            tags = WatchedTags(**tags | {"name_closes": tuple(tags["name_closes"])})
        followed = None if followed is None else WatchedLists(**followed)
        return cls(**given, **lists, tags=tags, lists=followed)
