"""Lists in the arguments of calls that are objects of JSON, each by the schema of its tool."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenbus.engine.grammar.watching.item_watch import ItemWatch
from tokenbus.engine.grammar.watching.list_places import ListPlaces

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tokenbus.engine.grammar.watching.item_watch import ItemTable
    from tokenbus.engine.grammar.watching.list_places import Place

_NOWHERE = ListPlaces({})


class CallWatch(ItemWatch):
    """Where calls stand: the name of each comes first, and says whose schema its arguments have."""

    def __init__(
        self,
        table: ItemTable,
        tools: Mapping[str, ListPlaces],
        name_keys: Collection[str],
        arguments_keys: Collection[str],
    ) -> None:
        """Stand before the calls.

        Args:
            tools: by their names, those that ask for lists without equal items.
            name_keys: the keys of names; none where a name itself is the key of the arguments.
            arguments_keys: those of arguments.
        """
        super().__init__(table, _NOWHERE)
        self._tools = tools
        self._name_keys = name_keys
        self._arguments_keys = arguments_keys
        # How many brackets are open where the keys of a call stand, None between calls.
        self._depth: int | None = None
        self._tool = ""
        self._awaits_name = False
        self._name_begins: int | None = None

    def follow(self, byte: int) -> None:
        """Follow one byte. Raises: KeyRepeated, ItemRepeated."""
        was_in_text = self._is_in_text
        super().follow(byte)
        if self._depth is not None and len(self._open) < self._depth:
            self._depth, self._tool = None, ""
        if not self._awaits_name or self._is_in_text == was_in_text:
            return
        if self._is_in_text:
            self._name_begins = len(self._text) - 1
        elif self._name_begins is not None:
            self._tool = json.loads(self._text[self._name_begins :])
            self._awaits_name, self._name_begins = False, None

    def _of_key(self) -> Place:
        depth = len(self._open)
        if self._depth is not None and depth > self._depth:
            return super()._of_key()
        key = json.loads(self._text[self._key_begins :])
        if key in self._name_keys:
            self._depth, self._awaits_name = depth, True
        elif key in self._arguments_keys or not self._name_keys:
            self._depth = depth
            places = self._tools.get(self._tool if self._name_keys else key)
            if places is not None:
                self._places = places
                return places.root
        return ()
