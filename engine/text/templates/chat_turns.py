"""Messages as a template takes them: each reaches the model, whatever the template leaves out.

What a template does not render is put where it does render: system messages before the first user
turn or into it, calls into the text of their message, written as the model writes them, and results
into a user turn.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.waiting_calls import WaitingCalls, id_of
from tokenbus.engine.text.templates.read_back import written_call
from tokenbus.engine.text.templates.template_traits import NINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenbus.engine.text.templates.format_choice import FormatChoice
    from tokenbus.engine.text.templates.template_traits import TemplateTraits

_PARAGRAPH = "\n\n"
# What templates ask for where clients leave it out, or write null.
_RULERS = ("system", "developer")
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


class ChatTurns:
    """Puts the messages of requests into the form of one template."""

    def __init__(self, traits: TemplateTraits, choice: FormatChoice) -> None:
        self._traits = traits
        self._choice = choice

    def of(self, messages: Sequence[Mapping[str, Any]], note: str = "") -> list[dict[str, Any]]:
        """Return the turns of a conversation; the messages stay as they are.

        Args:
            note: what the model is told beside them, the tools where the template renders none.
        """
        turns = [_plain_turn(message) for message in messages]
        turns = _in_order_of_calls(self._with_ids(turns))
        names = {call["id"]: call["function"]["name"] for call in _calls_of(turns) if "id" in call}
        turns = self._with_calls(turns)
        if not self._choice.has_results:
            turns = _with_written_results(turns, names)
        return self._with_rules(turns, note)

    def _with_calls(self, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give calls the shape of the template, or their place in the text of their message."""
        shaped: list[dict[str, Any]] = []
        waiting = list(turns)
        while waiting:
            turn = waiting.pop(0)
            calls = turn.pop("tool_calls", None)
            content = turn.get("content")
            if not calls:
                shaped.append(turn if content is not None else {**turn, "content": ""})
                continue
            choice = self._choice
            if choice.shape is None:
                shaped.append(self._written(turn, calls))
                continue
            fields = {key: each for key, each in turn.items() if key not in ("role", "content")}
            if len(calls) == 1 or choice.is_parallel:
                shaped += self._with_text(calls, content, fields)
                continue
            results, waiting = _leading_results(waiting)
            shaped += self._one_by_one(calls, results, content, fields)
        return shaped

    def _with_text(
        self,
        calls: Sequence[dict[str, Any]],
        content: str | None,
        fields: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Return calls with the text beside them: in one message, or the text in one before it.

        Where the template has neither, the calls stand in the text.
        """
        shape, choice = self._choice.shape, self._choice
        assert shape is not None
        if not content or choice.has_text_before:
            return [shape.turn(calls, content, **fields)]
        words = {"role": "assistant", "content": content}
        if choice.has_words_before:
            return [words, shape.turn(calls, **fields)]
        return [self._written({**words, **fields}, calls)]

    def _one_by_one(
        self,
        calls: Sequence[dict[str, Any]],
        results: Sequence[dict[str, Any]],
        content: str | None,
        fields: Mapping[str, Any],
    ) -> list[dict[str, Any]]:
        """Return a message for each call, with its result behind it."""
        by_id = {turn.get("tool_call_id"): turn for turn in results}
        shaped: list[dict[str, Any]] = []
        used: list[int] = []
        for idx, call in enumerate(calls):
            shaped += self._with_text([call], content if idx == 0 else None, fields)
            own = by_id.get(call.get("id"))
            if own is not None:
                shaped.append(own)
                used.append(id(own))
        return shaped + [turn for turn in results if id(turn) not in used]

    def _written(
        self, turn: Mapping[str, Any], calls: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Put calls into the text of their message, as the format writes them.

        Calls that it could not write, because it has none or because their arguments are no JSON
        object, stand there as JSON, each on a line of its own.
        """
        content = turn.get("content") or ""
        try:
            written = self._choice.format.write_calls([written_call(call) for call in calls])
        except ValueError:
            lines = [json.dumps(call["function"], ensure_ascii=False) for call in calls]
            written = "\n".join(([""] if content else []) + lines)
        return {**turn, "content": content + written}

    def _with_ids(self, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Give calls and results the ids that the template and the model ask for.

        A result without an id belongs to the first call that waits for one.
        """
        waiting: WaitingCalls[dict[str, Any]] = WaitingCalls()
        named: list[dict[str, Any]] = []
        number = 0
        for turn in turns:
            if "tool_calls" in turn:
                given_calls = turn["tool_calls"]
                calls = [self._with_id(call, number + at) for at, call in enumerate(given_calls)]
                waiting.begin(zip(map(id_of, given_calls), calls, strict=True))
                number += len(calls)
                named.append({**turn, "tool_calls": calls})
                continue
            given = id_of(turn, "tool_call_id")
            called = waiting.take(given) if turn.get("role") == "tool" else None
            if called is None:
                named.append(turn)
            else:
                own = called.setdefault("id", given or f"call_{len(named)}_{number}")
                # Some templates want a result's name, which clients of today leave out.
                name = turn.get("name") or called["function"]["name"]
                named.append({**turn, "tool_call_id": own, "name": name})
        return named

    def _with_id(self, call: Mapping[str, Any], number: int) -> dict[str, Any]:
        """Return a call with the id that the template and the model ask for, if they do."""
        given = id_of(call)
        written = self._choice.format.calls
        if self._traits.has_short_ids and len(given) != NINE:
            return {**call, "id": hashlib.sha256(f"{given} {number}".encode()).hexdigest()[:NINE]}
        if written is not None and written.keeps_id:
            return {**call, "id": written.id_of(call["function"]["name"], number)}
        return dict(call)

    def _with_rules(self, turns: Sequence[dict[str, Any]], note: str) -> list[dict[str, Any]]:
        """Place system and developer messages, and the note, where the template renders them."""
        traits = self._traits
        leading = next(
            (idx for idx, turn in enumerate(turns) if turn.get("role") not in _RULERS), len(turns)
        )
        rules, others = turns[:leading], turns[leading:]
        late = "system" if traits.has_late_system else "user"
        placed = [
            {**turn, "role": late} if turn.get("role") in _RULERS else turn for turn in others
        ]
        texts = (*(str(turn.get("content") or "") for turn in rules), note)
        told = _PARAGRAPH.join(text for text in texts if text)
        is_order = bool(rules) and all(turn["role"] == "developer" for turn in rules)
        is_lone = not any(turn.get("role") == "user" for turn in placed)
        if told and is_lone and not traits.has_lone_system:
            placed = _before_first_user(placed, told)
        elif told and is_order and traits.has_developer:
            placed.insert(0, {"role": "developer", "content": told})
        elif told and traits.has_system:
            placed.insert(0, {"role": "system", "content": told})
        elif told:
            placed = _before_first_user(placed, told)
        return placed if traits.has_late_system else _merged_users(placed)


def _plain_turn(message: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a message without fields that say nothing, reasoning under every name for it."""
    turn = {key: value for key, value in message.items() if value is not None}
    turn.setdefault("content", None)
    if "tool_calls" in turn:
        calls = [_plain_call(call) for call in turn["tool_calls"]]
        del turn["tool_calls"]
        if calls:
            turn["tool_calls"] = calls
    thought = next((turn[key] for key in _REASONING_KEYS if turn.get(key)), None)
    if thought is not None:
        turn |= {"reasoning_content": thought, "thinking": thought}
    return turn


def _plain_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function", call))
    named = {"id": call["id"]} if call.get("id") else {}
    return {**named, "type": "function", "function": function}


def _calls_of(turns: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [call for turn in turns for call in turn.get("tool_calls", ())]


def _leading_results(
    turns: list[dict[str, Any]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the results that stand first, and what follows them."""
    size = next((idx for idx, turn in enumerate(turns) if turn.get("role") != "tool"), len(turns))
    return turns[:size], turns[size:]


def _in_order_of_calls(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the results behind a message in the order of its calls: many templates render no ids."""
    placed: list[dict[str, Any]] = []
    waiting = list(turns)
    while waiting:
        turn, *waiting = waiting
        placed.append(turn)
        calls = [call.get("id") for call in turn.get("tool_calls", ())]
        if len(calls) > 1:
            results, waiting = _leading_results(waiting)
            places = {call_id: place for place, call_id in reversed(list(enumerate(calls)))}
            placed += sorted(
                results, key=lambda each: places.get(each.get("tool_call_id"), len(calls))
            )
    return placed


def _with_written_results(
    turns: Sequence[dict[str, Any]], names: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Turn results into user turns, those that follow each other into one."""
    written: list[dict[str, Any]] = []
    is_open = False
    for turn in turns:
        if turn.get("role") != "tool":
            written.append(turn)
            is_open = False
            continue
        name = turn.get("name") or names.get(str(turn.get("tool_call_id")), "the function")
        text = f"Result of {name}:\n{turn.get('content') or ''}"
        if is_open:
            written[-1]["content"] += f"\n{text}"
        else:
            written.append({"role": "user", "content": text})
        is_open = True
    return written


def _before_first_user(turns: Sequence[dict[str, Any]], told: str) -> list[dict[str, Any]]:
    """Put rules before the words of the first user turn, or into one of their own."""
    for idx, turn in enumerate(turns):
        if turn.get("role") == "user" and isinstance(turn.get("content"), str):
            content = _PARAGRAPH.join(part for part in (told, turn["content"]) if part)
            return [*turns[:idx], {**turn, "content": content}, *turns[idx + 1 :]]
    return [{"role": "user", "content": told}, *turns]


def _merged_users(turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Join user turns that follow each other: what has no system turns has none twice in a row."""
    merged: list[dict[str, Any]] = []
    for turn in turns:
        last = merged[-1] if merged else None
        if last is None or not (last.get("role") == turn.get("role") == "user"):
            merged.append(turn)
        elif isinstance(last["content"], str) and isinstance(turn["content"], str):
            merged[-1] = {**last, "content": _PARAGRAPH.join((last["content"], turn["content"]))}
        else:
            merged.append(turn)
    return merged
