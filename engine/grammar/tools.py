"""Functions that a model may call, as requests give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.json_schema import enforceable_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]
    description: str = ""


def tools_of(specs: Iterable[Mapping[str, Any]]) -> list[FunctionTool]:
    """Read tools as chat APIs spell them: `{"type": "function", "function": {"name": …}}`.

    The inner object may also stand alone.
    Raises: RequestRejected for the field `tools` if one is not of that form.
    """
    tools = []
    for spec in specs:
        function = spec.get("function", spec)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            raise RequestRejected("tools", "a tool is an object with a function that has a name")
        parameters = function.get("parameters") or {}
        if not isinstance(parameters, dict):
            raise RequestRejected("tools", f"{name}: parameters must be a JSON schema")
        tools.append(FunctionTool(name, parameters, str(function.get("description") or "")))
    return tools


def tool_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template that a request with tools is rendered by, if the model has one."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use", template.get("default"))
    return template if isinstance(template, str) else None


def arguments_schema(tool: FunctionTool) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments, which are always an object.

    Raises: GrammarRejected if a keyword would not be enforced, RequestRejected if it is no object.
    """
    schema = dict(tool.parameters) or {"properties": {}, "additionalProperties": False}
    if schema.setdefault("type", "object") != "object":
        raise RequestRejected("tools", f"{tool.name}: parameters must be of type object")
    try:
        enforceable: Any = enforceable_schema(schema)
    except GrammarRejected as error:
        raise GrammarRejected("tools", f"{tool.name}: {error}") from error
    if enforceable is False:
        reason = "Unsatisfiable schema: nothing can satisfy its parameters"
        raise GrammarRejected("tools", f"{tool.name}: {reason}")
    return {"type": "object"} if enforceable is True else enforceable
