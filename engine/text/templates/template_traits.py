"""Traits of a chat template: what it does with tools, calls, results and roles, by rendering.

Nothing is read from the template's source: a made-up conversation is rendered, and what stands in
the prompt counts. A template that raises does not do what it was asked for.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.engine.text.templates.chat_template import TemplateRefused

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tokenbus.engine.text.templates.chat_template import ChatTemplate

TOOL = "probe_tool"
QUESTION, RESULT = "probe question", "probe result"
ANSWER, THOUGHT = "probe answer", "probe thought"
_SYSTEM, _DEVELOPER = "probe rules", "probe orders"
# Arguments of two calls; their words occur nowhere else.
ARGUMENTS: tuple[dict[str, Any], ...] = (
    {"probe_word": "first word", "probe_count": 71},
    {"probe_word": "second word", "probe_count": 72},
)
PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "probe_word": {"type": "string", "description": "probe"},
        "probe_count": {"type": "integer", "description": "probe"},
    },
    "required": ["probe_word", "probe_count"],
}
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {"name": TOOL, "description": "probe", "parameters": PARAMETERS},
    }
]
USER = {"role": "user", "content": QUESTION}
# Names under which templates look for tools: the common one, that of Firefunction, which wants
# them as JSON text, and that of SmolLM3.
_AS_TEXT, _AS_LIST = "functions", "xml_tools"
_TOOLS_NAMES = ("tools", _AS_TEXT, _AS_LIST)
# The length of call ids that Mistral's templates ask for, or at least; clients make up any.
NINE = 9
_IDS = (("call_probe_tool_1", "2"), ("probe0001", "probe0002"))


class EmptyContent(StrEnum):
    """How a message of calls alone says that it has no text."""

    EMPTY = "empty"
    NULL = "null"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class HistoryShape:
    """How a template takes the calls of an assistant message."""

    has_object_arguments: bool = True
    empty_content: EmptyContent = EmptyContent.EMPTY

    def turn(
        self, calls: Sequence[Mapping[str, Any]], content: str | None = None, **fields: Any
    ) -> dict[str, Any]:
        """Return a message of calls with names and arguments, JSON text or objects."""
        turn: dict[str, Any] = {"role": "assistant", **fields}
        if content:
            turn["content"] = content
        elif self.empty_content is not EmptyContent.MISSING:
            turn["content"] = "" if self.empty_content is EmptyContent.EMPTY else None
        turn["tool_calls"] = [self._call(call) for call in calls]
        return turn

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = dict(call["function"])
        arguments = function.get("arguments")
        if self.has_object_arguments:
            function["arguments"] = _as_object(arguments)
        elif not isinstance(arguments, str):
            function["arguments"] = json.dumps(arguments or {}, ensure_ascii=False)
        return {**call, "type": "function", "function": function}


SHAPES = tuple(
    HistoryShape(has_object_arguments, empty_content)
    for has_object_arguments in (True, False)
    for empty_content in (EmptyContent.EMPTY, EmptyContent.NULL, EmptyContent.MISSING)
)


@dataclass(frozen=True, slots=True)
class TemplateTraits:
    """What a template does.

    tools_name: the name under which it renders tools, None if it renders none.
    has_system, has_late_system: it renders a system message, and one behind other messages.
    has_lone_system: it renders one without a user message, with tools too.
    has_developer: it knows the role, and does not merely print whatever role there is.
    has_history: it renders earlier questions and answers, or refuses them; judges of a single
        exchange leave them out.
    shapes: those in which it renders a call, in the order of preference.
    has_short_ids: it refuses some ids of calls that have not nine characters.
    """

    tools_name: str | None
    has_system: bool
    has_late_system: bool
    has_lone_system: bool
    has_developer: bool
    has_history: bool
    shapes: tuple[HistoryShape, ...]
    has_short_ids: bool


def traits_of(template: ChatTemplate) -> TemplateTraits:
    """Render what the traits ask for; some 30 short prompts."""
    tools_name = next((name for name in _TOOLS_NAMES if _renders_tools(template, name)), None)
    shapes: list[HistoryShape] = []
    has_short_ids = False
    for ids in _IDS:
        shapes = [shape for shape in SHAPES if _renders_call(template, tools_name, shape, ids)]
        if shapes:
            has_short_ids = ids is not _IDS[0]
            break
    return TemplateTraits(
        tools_name=tools_name,
        has_system=_shows(template, [{"role": "system", "content": _SYSTEM}, USER], _SYSTEM),
        has_late_system=_shows(template, _with_late(_role("system", _SYSTEM)), _SYSTEM),
        has_lone_system=all(
            _SYSTEM in rendered(template, [_role("system", _SYSTEM)], name)
            for name in dict.fromkeys((None, tools_name))
        ),
        has_developer=_knows_developer(template),
        has_history=_keeps_history(template),
        shapes=tuple(shapes),
        has_short_ids=has_short_ids,
    )


def tool_names(tools_name: str | None, tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return what a template gets beside `tools`, if it looks for them elsewhere."""
    if tools_name in (None, "tools"):
        return {}
    if tools_name == _AS_LIST:
        return {_AS_LIST: [dict(tool) for tool in tools]}
    functions = [tool.get("function", tool) for tool in tools]
    return {tools_name: json.dumps(functions, ensure_ascii=False), "datetime": ""}


def probe_calls(num_calls: int, *, short: bool) -> list[dict[str, Any]]:
    """Return calls of the made-up conversation."""
    ids = _IDS[1] if short else _IDS[0]
    return [
        {"id": ids[idx], "type": "function", "function": {"name": TOOL, "arguments": arguments}}
        for idx, arguments in enumerate(ARGUMENTS[:num_calls])
    ]


def result_of(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return the made-up result of a call."""
    return {"role": "tool", "tool_call_id": call["id"], "name": TOOL, "content": RESULT}


def rendered(
    template: ChatTemplate,
    turns: Sequence[Mapping[str, Any]],
    tools_name: str | None = None,
    **settings: Any,
) -> str:
    """Return a made-up conversation as the template writes it, "" if it refuses."""
    names = {**tool_names(tools_name, TOOLS), **settings.pop("names", {})}
    try:
        return template.render(turns, TOOLS if tools_name else None, names=names, **settings)
    except TemplateRefused:
        return ""


def _as_object(arguments: Any) -> Any:
    """Return arguments as an object; what is no JSON reaches the template as it is."""
    if not isinstance(arguments, str):
        return {} if arguments is None else arguments
    try:
        return json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments


def _role(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _shows(template: ChatTemplate, turns: Sequence[Mapping[str, Any]], words: str) -> bool:
    return words in rendered(template, turns)


def _keeps_history(template: ChatTemplate) -> bool:
    """Tell whether nothing is missing where a question follows an answer."""
    text = rendered(template, [USER, _role("assistant", ANSWER), _role("user", "go on")])
    return not text or (QUESTION in text and ANSWER in text)


def _with_late(turn: dict[str, Any]) -> list[dict[str, Any]]:
    return [USER, _role("assistant", ANSWER), turn, {"role": "user", "content": "go on"}]


def _knows_developer(template: ChatTemplate) -> bool:
    """Tell whether the role does more than a made-up one would."""
    text = rendered(template, [_role("developer", _DEVELOPER), USER])
    made_up = rendered(template, [_role("orderer", _DEVELOPER), USER])
    return _DEVELOPER in text and text != made_up.replace("orderer", "developer")


def _renders_tools(template: ChatTemplate, name: str) -> bool:
    return TOOL in rendered(template, [USER], name)


def _renders_call(
    template: ChatTemplate, tools_name: str | None, shape: HistoryShape, ids: Iterable[str]
) -> bool:
    """Tell whether a call is rendered whichever of the ids it has."""
    [call] = probe_calls(1, short=False)
    named = [{**call, "id": each} for each in ids]
    texts = [
        rendered(template, [USER, shape.turn([each]), result_of(each)], tools_name)
        for each in named
    ]
    return all(words in text for words in _words(ARGUMENTS[0]) for text in texts)


def _words(arguments: Mapping[str, Any]) -> Iterator[str]:
    yield from (TOOL, *map(str, arguments.values()))
