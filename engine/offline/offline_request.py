"""Requests of the offline API: the fields that a job has, through the same door as the queue's."""

from __future__ import annotations

import secrets
import struct
from base64 import b64decode
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.message_shapes import shaped_messages
from tokenbus.engine.chat.requests.request_rules import (
    check_model,
    check_together,
    check_values,
)
from tokenbus.engine.chat.requests.request_shapes import Shaped, shaped
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import shown, value_problem
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.types import GrammarKind, GrammarSpec, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SEED_BITS = 63
# What only a queue can do for a request.
_OF_QUEUES = frozenset({"deadline_s", "not_before_s", "idempotency_key", "callback_url"})
_INPUTS = frozenset({"prompt", "messages", "token_ids"})
_ONE_INPUT = "give exactly one of prompt, messages and token_ids"
_SAMPLING = frozenset(item.name for item in fields(SamplingParams))
_DEFAULTS = {item.name: getattr(SamplingParams(), item.name) for item in fields(SamplingParams)}
_LENGTHS = {name: _DEFAULTS[name] for name in ("min_tokens", "max_tokens")}


@dataclass(frozen=True, slots=True)
class OfflineRequest:
    """What the fields of a call ask for, beside prompts and messages.

    `params` is None where no field of sampling was given. `tool_choice` is auto, none, required or
    the name of a tool; tools that must not be called are left out. `grammar_field` is the field
    that asks for the grammar of the answer, as the caller has spelled it.
    """

    params: SamplingParams | None = None
    tools: tuple[dict[str, Any], ...] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    template_arguments: Mapping[str, Any] = field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_reasoning_tokens: int | None = None
    grammar_field: str = "grammar"

    @classmethod
    def of(
        cls, given: Mapping[str, Any], model_names: Sequence[str], *, is_chat: bool
    ) -> OfflineRequest:
        """Read the fields of a call. Raises: RequestRejected with the path of the part."""
        request: Shaped | None = None
        try:
            request = shaped(given)
            check_values(request)
            own = request.fields
            if "model" in own:
                check_model(own["model"], model_names)
            # The call's own argument is the one input; fields that give another come beside it.
            if not _INPUTS.isdisjoint(own):
                raise ShapeInvalid("prompt", _ONE_INPUT)
            for name in _OF_QUEUES & own.keys():
                raise ShapeInvalid(name, "is for the queue alone; submit the request there")
            check_together(_LENGTHS | own, is_chat=is_chat)
        except ShapeInvalid as error:
            path = error.field if request is None else request.told(error.field)
            raise RequestRejected(path, error.message) from None
        sampling = {name: own[name] for name in own.keys() & _SAMPLING}
        choice = own.get("tool_choice", "auto")
        return cls(
            params=_params(sampling) if sampling else None,
            tools=() if choice == "none" else tuple(map(_for_template, own.get("tools", ()))),
            tool_choice=choice["name"] if isinstance(choice, dict) else choice,
            parallel_tool_calls=own.get("parallel_tool_calls", True),
            template_arguments=own.get("chat_template_kwargs", {}),
            add_generation_prompt=own.get("add_generation_prompt", True),
            continue_final_message=own.get("continue_final_message", False),
            max_reasoning_tokens=own.get("max_reasoning_tokens"),
            grammar_field=request.told(
                "tools" if own.get("tools") and choice != "none" else "grammar"
            ),
        )


def resolved_params(params: Any) -> SamplingParams:
    """Bring parameters that a caller made to the one spelling, and draw the seed where it is open.

    Raises: RequestRejected for what has no meaning.
    """
    if not isinstance(params, SamplingParams):
        raise RequestRejected("params", f"must be SamplingParams, got {shown(params)}")
    changed = {
        name: value
        for name, default in _DEFAULTS.items()
        if (value := getattr(params, name)) != default
    }
    grammar = changed.pop("grammar", None)
    if not isinstance(grammar, GrammarSpec | None):
        raise RequestRejected("grammar", f"must be a GrammarSpec, got {shown(grammar)}")
    try:
        request = shaped(changed)
        check_values(request)
    except ShapeInvalid as error:
        raise RequestRejected(error.field, error.message) from None
    own = request.fields
    own["seed"] = secrets.randbits(SEED_BITS) if params.seed is None else params.seed
    defaults = {name: _DEFAULTS[name] for name in changed.keys() - own.keys()}
    lists = {name: tuple(own[name]) for name in ("stop",) if isinstance(own.get(name), list)}
    return replace(params, grammar=grammar, **(own | defaults | lists))


def conversation_of(messages: Any) -> tuple[list[dict[str, Any]], bool]:
    """Return a conversation in one spelling, and whether its last message is to be continued.

    Raises: RequestRejected with the path of the part.
    """
    try:
        return shaped_messages(messages)
    except ShapeInvalid as error:
        raise RequestRejected(error.field, error.message) from None


def token_ids_of(prompt: Any, vocab_size: int) -> tuple[int, ...]:
    """Return a prompt of token ids. Raises: RequestRejected for what is none."""
    problem = value_problem("token_ids", prompt)
    if problem is not None:
        below, told = problem
        raise RequestRejected(f"token_ids.{below}" if below else "token_ids", told)
    ids = tuple(prompt)
    if max(ids) >= vocab_size:
        told = f"token id {max(ids)} is not in the vocabulary of {vocab_size}"
        raise RequestRejected("token_ids", told)
    return ids


def params_of(
    requests: Sequence[Any],
    params: SamplingParams | Sequence[SamplingParams] | None,
    asked: OfflineRequest,
) -> list[SamplingParams]:
    """Return the parameters of each request. Raises: RequestRejected if they are more or fewer."""
    if params is None:
        return [asked.params or SamplingParams()] * len(requests)
    if asked.params is not None:
        raise RequestRejected("params", "not together with fields of sampling; give either")
    if isinstance(params, SamplingParams):
        return [params] * len(requests)
    if not isinstance(params, (list, tuple)):
        raise RequestRejected("params", f"must be SamplingParams, got {type(params).__name__}")
    if len(params) != len(requests):
        raise RequestRejected("params", f"{len(params)} for {len(requests)} prompts")
    return list(params)


def prompt_among(fields: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Return the prompt that is a field, and the others. Raises: RequestRejected without one."""
    given = [name for name in ("prompt", "token_ids") if fields.get(name) is not None]
    if len(given) != 1 or fields.get("messages") is not None:
        raise RequestRejected("prompt", _ONE_INPUT)
    prompt = fields[given[0]]
    if given[0] == "token_ids" and isinstance(prompt, str):
        prompt = _unpacked(prompt)
    if given[0] == "prompt" and not isinstance(prompt, str):
        raise RequestRejected("prompt", f"must be text, got {shown(prompt)}")
    others = {name: value for name, value in fields.items() if name not in given}
    return [prompt], others


def _unpacked(text: str) -> list[int]:
    """Read token ids that are packed as a job's are. Raises: RequestRejected."""
    try:
        packed = b64decode(text, validate=True)
    except ValueError:
        packed = b""
    if not packed or len(packed) % 4:
        raise RequestRejected("token_ids", "is no base64 of little-endian int32")
    return list(struct.unpack(f"<{len(packed) // 4}i", packed))


def named_choice(fields: dict[str, Any]) -> dict[str, Any]:
    """Take the bare name of a tool for a choice of it, which Python callers may write."""
    choice = fields.get("tool_choice")
    is_name = isinstance(choice, str) and choice not in ("auto", "none", "required", "any")
    return fields | {"tool_choice": {"name": str(choice)}} if is_name else fields


def conversations_of(messages: Any) -> list[Any]:
    """Return the conversations of a call, which may be one. Raises: RequestRejected."""
    if messages is None:
        raise RequestRejected("prompt", _ONE_INPUT)
    if not isinstance(messages, (list, tuple)):
        what = f"must be a list of messages, got {type(messages).__name__}"
        raise RequestRejected("messages", what)
    is_one = not messages or not isinstance(messages[0], (list, tuple))
    return [messages] if is_one else list(messages)


def prompts_of(prompts: Any) -> list[Any]:
    """Return the prompts of a call, which may be one. Raises: RequestRejected."""
    if isinstance(prompts, str):
        return [prompts]
    try:
        listed = list(prompts)
    except TypeError:
        what = f"must be texts or lists of token ids, got {type(prompts).__name__}"
        raise RequestRejected("prompts", what) from None
    # One prompt, as a list of numbers, whatever they are worth as ids.
    is_one = bool(listed) and all(isinstance(item, (int, float)) for item in listed)
    return [listed] if is_one else listed


def _params(sampling: dict[str, Any]) -> SamplingParams:
    """Return the parameters of fields that were checked."""
    values = dict(sampling)
    for name in ("stop", "stop_token_ids"):
        if name in values:
            values[name] = tuple(values[name])
    if "bad_words" in values:
        values["bad_words"] = tuple(tuple(ids) for ids in values["bad_words"])
    grammar = values.get("grammar")
    if grammar is not None:
        values["grammar"] = GrammarSpec(GrammarKind(grammar["kind"]), grammar["source"])
    return SamplingParams(**values)


def _for_template(tool: dict[str, Any]) -> dict[str, Any]:
    """Give a tool that takes no arguments the schema that says so, as the worker does."""
    function = dict(tool["function"])
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    # The order of the job request, which templates show.
    ordered = {"name": function["name"]}
    if "description" in function:
        ordered["description"] = function["description"]
    ordered["parameters"] = parameters
    return {"type": "function", "function": {**ordered, **function, "parameters": parameters}}
