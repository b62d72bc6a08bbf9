"""Calls of a conversation as their results come: by id, and in order where ids are missing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tokenbus.engine.chat.requests.shape_error import ShapeInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# Of ids that are numbers: those that every reader of JSON keeps.
_MAX_NUMBER = 2**53
Call = TypeVar("Call")


class WaitingCalls(Generic[Call]):
    """The calls so far, with those of the last message that have no result yet."""

    def __init__(self) -> None:
        self._known: dict[str, Call] = {}
        self._waiting: list[tuple[str, Call]] = []

    def begin(self, calls: Iterable[tuple[str, Call]]) -> None:
        """Take the calls of a message with their ids; "" is none.

        Calls of earlier messages wait no more; a result may still name them.
        """
        self._known |= dict(self._waiting)
        self._waiting = list(calls)

    def take(self, call_id: str) -> Call | None:
        """Return the call that a result belongs to, None if there is none.

        A result without an id belongs to the first call that waits; one whose id none of those
        has, to the first without one, or else to an earlier call. Several results may belong to a
        call that has an id.
        """
        ids = [own for own, _ in self._waiting]
        if not call_id:
            at = 0 if ids else None
        elif call_id in ids:
            at = ids.index(call_id)
        else:
            at = ids.index("") if "" in ids else None
        if at is None:
            return self._known.get(call_id) if call_id else None
        own, call = self._waiting.pop(at)
        self._known[own or call_id] = call
        return call


def id_of(part: Mapping[str, Any], name: str = "id") -> str:
    """Return the id that a call or a result has, "" if it has none."""
    given = part.get(name)
    return "" if given is None else str(given)


def spell_id(fields: dict[str, Any], name: str, where: str) -> None:
    """Spell the id of a call as text, where a client has numbers. Raises: ShapeInvalid."""
    given = fields.get(name)
    if isinstance(given, int) and not isinstance(given, bool) and abs(given) <= _MAX_NUMBER:
        fields[name] = str(given)
    elif given is not None and not isinstance(given, str):
        raise ShapeInvalid(f"{where}.{name}", "must be text or a whole number")
