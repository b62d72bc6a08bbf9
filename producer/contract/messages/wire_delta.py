"""Deltas on the wire, in the spelling of OpenAI's stream."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

import msgspec

from tokenbus.engine.chat.delta import CallDelta, MessageDelta

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class WireFunction(msgspec.Struct, frozen=True, gc=False):
    """Name and argument text of a call; the name stands in its first delta alone."""

    name: str | None = None
    arguments: str | None = None


class WireCall(msgspec.Struct, frozen=True, gc=False):
    """What is new of one call."""

    index: int
    id: str | None = None
    function: WireFunction = WireFunction()


class WireDelta(msgspec.Struct, frozen=True, gc=False):
    """What an event adds to the message of its choice; what adds nothing is left out."""

    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[WireCall, ...] = ()

    @classmethod
    def of(cls, delta: MessageDelta) -> WireDelta:
        """Return a delta as it is spelled."""
        calls = tuple(
            WireCall(call.index, call.id or None, WireFunction(call.name or None, call.arguments))
            for call in delta.calls
        )
        return cls(delta.content or None, delta.reasoning or None, calls)

    @classmethod
    def of_wire(cls, wire: object) -> WireDelta | None:
        """Read a decoded object; None for what is no delta."""
        try:
            return msgspec.convert(wire, cls)
        except msgspec.ValidationError:
            return None

    def read(self) -> MessageDelta:
        """Return the delta that is spelled so."""
        calls = tuple(
            CallDelta(
                call.index, call.id or "", call.function.name or "", call.function.arguments or ""
            )
            for call in self.tool_calls
        )
        return MessageDelta(self.content or "", self.reasoning_content or "", calls)

    def dump(self) -> dict[str, Any]:
        """Return the JSON object."""
        wire: dict[str, Any] = msgspec.json.decode(delta_json(self.read()))
        return wire


_NOTHING = MessageDelta()


def delta_json(delta: MessageDelta) -> str:
    """Return the JSON object of a delta; `{}` of one that adds nothing."""
    if not delta.calls:
        if not delta.reasoning:
            return f'{{"content":{quoted(delta.content)}}}' if delta.content else "{}"
        if not delta.content:
            return f'{{"reasoning_content":{quoted(delta.reasoning)}}}'
    parts = []
    if delta.content:
        parts.append(f'"content":{quoted(delta.content)}')
    if delta.reasoning:
        parts.append(f'"reasoning_content":{quoted(delta.reasoning)}')
    if delta.calls:
        parts.append(f'"tool_calls":[{",".join(map(_call_json, delta.calls))}]')
    return "{" + ",".join(parts) + "}"


def _call_json(call: CallDelta) -> str:
    arguments = f'"arguments":{quoted(call.arguments)}'
    if not call.id:
        return f'{{"index":{call.index},"function":{{{arguments}}}}}'
    return (
        f'{{"index":{call.index},"id":{quoted(call.id)},"type":"function",'
        f'"function":{{"name":{quoted(call.name)},{arguments}}}}}'
    )


def end_json(deltas: Sequence[MessageDelta]) -> str:
    """Return the fields of the terminal event that tell what was held back, a delta per choice."""
    first = deltas[0] if deltas else _NOTHING
    told = f'"delta":{delta_json(first)}'
    if any(deltas[1:]):
        told += f',"deltas":[{",".join(map(delta_json, deltas))}]'
    return told


def joined(deltas: Iterable[MessageDelta]) -> MessageDelta:
    """Return one delta in place of several that follow one another in one message."""
    some = [delta for delta in deltas if delta]
    if len(some) <= 1:
        return some[0] if some else _NOTHING
    calls: dict[int, CallDelta] = {}
    for delta in some:
        for call in delta.calls:
            known = calls.get(call.index)
            calls[call.index] = call if known is None else _extended(known, call)
    return MessageDelta(
        "".join(delta.content for delta in some),
        "".join(delta.reasoning for delta in some),
        tuple(calls[index] for index in sorted(calls)),
    )


def _extended(call: CallDelta, later: CallDelta) -> CallDelta:
    return CallDelta(
        call.index, call.id or later.id, call.name or later.name, call.arguments + later.arguments
    )
