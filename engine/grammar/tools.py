"""Functions that a model may call, as requests give them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.json_schema import enforceable_schema

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.grammar.schema.refusal import StepBudget


@dataclass(frozen=True, slots=True)
class FunctionTool:
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    name: str
    parameters: Mapping[str, Any]
    description: str = ""


def tools_of(specs: Iterable[Mapping[str, Any]]) -> list[FunctionTool]:
    """Read tools as chat APIs spell them: `{"type": "function", "function": {"name": …}}`.

    The inner object may also stand alone.
    Raises: RequestRejected with the path of one that is not of that form.
    """
    tools = []
    for idx, spec in enumerate(specs):
        function = spec.get("function", spec)
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str):
            told = "a tool is an object with a function that has a name"
            raise RequestRejected(f"tools.{idx}", told)
        given = function.get("parameters")
        parameters = {} if given is None else given
        if not isinstance(parameters, dict):
            raise RequestRejected(parameters_field(idx), "must be a JSON schema of an object")
        tools.append(FunctionTool(name, parameters, str(function.get("description") or "")))
    return tools


def parameters_field(idx: int) -> str:
    """Return the path of the schema of a tool's arguments in a request."""
    return f"tools.{idx}.function.parameters"


def tool_template(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """Return the chat template that a request with tools is rendered by, if the model has one."""
    template: Any = tokenizer.chat_template
    if isinstance(template, dict):
        template = template.get("tool_use", template.get("default"))
    return template if isinstance(template, str) else None


def arguments_schema(
    tool: FunctionTool, field: str, budget: StepBudget, *, is_watched: bool = False
) -> Mapping[str, Any]:
    """Return the schema of a tool's arguments, which are always an object.

    field: the path of the schema in the request. budget: of steps, shared by all tools. is_watched:
    lists in the arguments are followed, so that they may be marked for it.
    Raises: GrammarRejected for that field if a keyword would not be enforced or nothing can satisfy
        the schema, RequestRejected if it is not of an object.
    """
    schema = dict(tool.parameters) or {"properties": {}, "additionalProperties": False}
    kind = schema.setdefault("type", "object")
    if isinstance(kind, list) and "object" in kind:
        kind = schema["type"] = "object"
    if kind != "object":
        raise RequestRejected(field, "must be of type object")
    try:
        enforceable: Any = enforceable_schema(schema, is_watched=is_watched, budget=budget)
    except GrammarRejected as error:
        raise GrammarRejected(field, str(error).removeprefix(f"{error.field}: ")) from error
    if enforceable is False:
        raise GrammarRejected(field, "JSON schema at #: nothing can satisfy it")
    return {"type": "object"} if enforceable is True else enforceable
