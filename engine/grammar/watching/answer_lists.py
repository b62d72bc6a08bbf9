"""Watches over the JSON of an answer: its keys, and the lists without equal items."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.grammar.schema.key_watch import KeyWatch
from tokenbus.engine.grammar.watching.braced_keys import BracedKeys
from tokenbus.engine.grammar.watching.call_watch import CallWatch
from tokenbus.engine.grammar.watching.item_watch import ItemWatch
from tokenbus.engine.grammar.watching.list_places import ListPlaces

if TYPE_CHECKING:
    from tokenbus.engine.grammar.watching.item_watch import ItemTable
    from tokenbus.engine.grammar.watching.list_places import Place
    from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer


class AnswerLists:
    """Makes the watches over the parts of one form of answers."""

    def __init__(
        self, table: ItemTable, form: WatchedAnswer, content: ListPlaces | None = None
    ) -> None:
        """Read the schemas of a form.

        Args:
            content: the places of content that is JSON by a schema, where the form does not say.
        """
        lists = form.lists
        self._table = table
        self._quote = form.quote
        self._lists = lists
        self._content = content
        if lists is not None and lists.content is not None:
            self._content = ListPlaces(lists.content)
        tools = lists.tools if lists is not None else {}
        self._tools = {tool: ListPlaces(schema) for tool, schema in tools.items()}
        self._name = None
        if lists is not None and lists.names:
            either = "|".join(map(re.escape, sorted(lists.names, key=len, reverse=True)))
            lead = f"(?:^|{re.escape(lists.lead)})" if lists.lead else ""
            pattern = f"{lead}{re.escape(lists.name_prefix)}({either})(?![A-Za-z0-9_.-])"
            self._name = re.compile(pattern.encode())
        # What JSON begins with in calls; arguments behind a name are objects.
        self.begins = b"{[" if self._name is None else b"{"

    def of_content(self) -> KeyWatch:
        """Return a watch over content that is JSON."""
        return self._of(self._content)

    def of_calls(self) -> KeyWatch | BracedKeys:
        """Return a watch over calls."""
        if self._quote:
            return BracedKeys(self._table, self._quote)
        if self._lists is not None and self._lists.arguments_keys and self._tools:
            keys = self._lists.name_keys, self._lists.arguments_keys
            return CallWatch(self._table, self._tools, *keys)
        return KeyWatch(self._table)

    def of_arguments(self, told: bytes) -> KeyWatch | None:
        """Return a watch over the arguments behind a name; None where names stand inside of JSON.

        told: the text between the mark of a call and its arguments, without white space.
        """
        if self._name is None:
            return None
        found = [each[1].decode() for each in self._name.finditer(told)]
        return self.of_tool(found[-1] if found else "")

    def of_tool(self, tool: str) -> KeyWatch:
        """Return a watch over the arguments of a tool."""
        return self._of(self._tools.get(tool))

    def of_value(self, tool: str, name: str) -> KeyWatch:
        """Return a watch over one argument that stands between tags."""
        places = self._tools.get(tool)
        return self._of(places, places.of_key(places.root, name) if places is not None else ())

    def _of(self, places: ListPlaces | None, place: Place | None = None) -> KeyWatch:
        if places is None:
            return KeyWatch(self._table)
        return ItemWatch(self._table, places, place)
