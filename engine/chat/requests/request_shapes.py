"""The door: requests as clients of OpenAI, vLLM and others write them, brought to one spelling.

Offline API and queue take the same fields in the same shapes, and refuse with the same sentences,
because both call `shaped` first. What comes out has the names of the job request, in the form that
workers of earlier releases read. docs/requests.md has the table, field by field.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.message_shapes import are_plain, as_mapping, shaped_messages
from tokenbus.engine.chat.requests.output_shapes import OUTPUT_FIELDS, grammar_of, shaped_grammar
from tokenbus.engine.chat.requests.reasoning_shapes import (
    REASONING_FIELDS,
    TEMPLATE_FIELDS,
    template_arguments,
)
from tokenbus.engine.chat.requests.sampling_shapes import shape_sampling
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.tool_shapes import (
    shaped_choice,
    shaped_tools,
    tools_of_functions,
)
from tokenbus.engine.chat.requests.value_checks import shown

if TYPE_CHECKING:
    from collections.abc import Mapping

# Fields of a request that have one spelling only.
_PLAIN = frozenset(
    {
        "v", "id", "prompt", "token_ids", "tenant", "priority", "deadline_s", "not_before_s",
        "idempotency_key", "cache_group", "cache_secret", "metadata", "traceparent", "callback_url",
        "model", "n", "max_tokens", "min_tokens", "temperature", "top_p", "min_p",
        "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
        "include_stop", "ignore_eos", "prompt_logprobs", "parallel_tool_calls",
        "max_reasoning_tokens",
    }
)  # fmt: skip
_SHAPED = frozenset(
    {
        "messages", "tools", "tool_choice", "stop", "logprobs", "logit_bias", "top_k", "grammar",
        "bad_words", "stop_token_ids", "chat_template_kwargs", "add_generation_prompt",
        "continue_final_message",
    }
)  # fmt: skip
_MOSTLY_PLAIN = _PLAIN | {"messages"}
REQUEST_FIELDS = _PLAIN | _SHAPED
# The same under other names: what OpenAI, vLLM and Qwen call them.
_ALIASES = {
    "max_completion_tokens": "max_tokens",
    "include_stop_str_in_output": "include_stop",
    "thinking_token_budget": "max_reasoning_tokens",
    "thinking_budget": "max_reasoning_tokens",
}
# What says nothing about the answer: who asks, how it is sent, billed, kept or cached elsewhere.
_UNREAD_FIELDS = frozenset(
    {
        "user", "safety_identifier", "prompt_cache_key", "prompt_cache_retention",
        "prompt_cache_options", "store",
        "service_tier", "stream", "stream_options", "extra_headers", "extra_query", "timeout",
        "guided_decoding_backend", "spaces_between_special_tokens", "separate_reasoning",
        "stream_reasoning", "include_reasoning", "return_tokens_as_token_ids", "return_token_ids",
    }
)  # fmt: skip
_TEXT_ALONE = "the models here read and write text alone"
# What cannot be carried out: why, and the values that ask for nothing.
_REFUSED_FIELDS: dict[str, tuple[str, tuple[Any, ...]]] = {
    "modalities": (f"{_TEXT_ALONE}: say ['text'] or leave it out", (["text"], ("text",))),
    "audio": (_TEXT_ALONE, ()),
    "prediction": ("predicted outputs are not used; leave it out", ()),
    "web_search_options": ("nothing is searched; give a tool that does", ()),
    "verbosity": ("is no instruction that models here know; write one to the model", ("medium",)),
    "moderation": ("nothing is moderated here", ()),
    "input": ("belongs to the API of responses; give messages", ()),
    "instructions": ("belongs to the API of responses; give a message of the system", ()),
    "previous_response_id": ("no answer is kept to go on from; give all messages", ()),
    "best_of": ("give n", (1,)),
    "use_beam_search": ("beams are not searched", (False,)),
    "length_penalty": ("is of beam search", (1, 1.0)),
    "echo": ("the prompt is not repeated; its logprobs are prompt_logprobs", (False,)),
    "suffix": ("no text is filled in before a suffix", ("",)),
    "allowed_token_ids": ("give a grammar, or logit_bias", ()),
    "logits_processors": ("no code is run; give a grammar, bad_words or logit_bias", ((), [])),
    "documents": ("no documents are rendered; write them into a message", ((), [])),
    "chat_template": ("is set where the worker starts", ()),
    "add_special_tokens": ("a template has its own, a prompt gets the tokenizer's", (False,)),
    "skip_special_tokens": ("those of the model's format alone are shown", (True,)),
    "truncate_prompt_tokens": ("no prompt is cut", ()),
    "guided_whitespace_pattern": ("white space is the grammar's own", ()),
    "structural_tag": ("give tools, or a grammar", ()),
    "mm_processor_kwargs": (_TEXT_ALONE, ()),
}
FOREIGN_FIELDS = frozenset(
    {
        *_ALIASES, *_UNREAD_FIELDS, *_REFUSED_FIELDS, *OUTPUT_FIELDS, *TEMPLATE_FIELDS,
        "extra_body", "top_logprobs", "functions", "function_call",
    }
)  # fmt: skip


@dataclass(slots=True)
class Shaped:
    """A request in our spelling; `names` has, for its fields, the other name they came under."""

    fields: dict[str, Any]
    names: dict[str, str] = field(default_factory=dict)

    def told(self, path: str) -> str:
        """Return the path of a part as the sender has spelled it."""
        head, dot, rest = path.partition(".")
        name = self.names.get(head)
        if name is None:
            return path
        return name if head == "grammar" else f"{name}{dot}{rest}"


def is_plain(given: Mapping[str, Any]) -> bool:
    """Tell whether a request needs no other spelling: all of it has one alone."""
    if not given.keys() <= _MOSTLY_PLAIN:
        return False
    for name, value in given.items():
        if value is None or (name == "prompt" and type(value) is not str):
            return False
    return "messages" not in given or are_plain(given["messages"])


def shaped(given: Mapping[str, Any]) -> Shaped:
    """Bring a request to one spelling; what is None has its default.

    Fields that no one knows are left for who checks the rest.
    Raises: ShapeInvalid with the path of the part.
    """
    if is_plain(given):
        return Shaped(dict(given))
    fields = _merged(given)
    request = Shaped({name: value for name, value in fields.items() if name not in FOREIGN_FIELDS})
    _refuse(fields)
    _rename(fields, request)
    if "messages" in request.fields:
        messages, continues = shaped_messages(request.fields["messages"])
        request.fields["messages"] = messages
        if continues:
            request.fields["continue_final_message"] = True
    _shape_tools(fields, request)
    _shape_output(fields, request)
    shape_sampling(fields, request.fields, request.names)
    _shape_template(fields, request)
    return request


def _merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are given, those of `extra_body` among them."""
    fields = dict(given)
    extra = fields.pop("extra_body", None)
    if extra is not None:
        inner = as_mapping(extra, "extra_body", "an object of fields")
        if inner.get("extra_body") is not None:
            told = "stands inside itself; its fields stand in the outer one"
            raise ShapeInvalid("extra_body.extra_body", told)
        fields |= {name: value for name, value in inner.items() if name != "extra_body"}
    known = REQUEST_FIELDS | FOREIGN_FIELDS
    return {name: value for name, value in fields.items() if value is not None or name not in known}


def _refuse(fields: Mapping[str, Any]) -> None:
    for name in fields:
        if name in _REFUSED_FIELDS:
            why, harmless = _REFUSED_FIELDS[name]
            given = fields[name]
            if not any(type(given) is type(each) and given == each for each in harmless):
                raise ShapeInvalid(name, why)


def _rename(fields: Mapping[str, Any], request: Shaped) -> None:
    for foreign, own in _ALIASES.items():
        if foreign not in fields:
            continue
        other = request.fields.get(own)
        if other is not None and other != fields[foreign]:
            told = f"{request.names.get(own, own)} {shown(other)}"
            raise ShapeInvalid(foreign, f"{shown(fields[foreign])} differs from {told}")
        request.fields[own] = fields[foreign]
        request.names.setdefault(own, foreign)


def _shape_tools(fields: Mapping[str, Any], request: Shaped) -> None:
    own = request.fields
    tools: list[dict[str, Any]] | None = None
    if "tools" in own:
        tools = shaped_tools(own.pop("tools"))
    if "functions" in fields:
        if tools:
            raise ShapeInvalid("functions", "not together with tools, which took their place")
        tools = tools_of_functions(fields["functions"])
        request.names["tools"] = "functions"
        # A former call was one alone.
        own.setdefault("parallel_tool_calls", False)
    choice = own.pop("tool_choice", None)
    path = "tool_choice"
    if "function_call" in fields:
        if choice is not None:
            raise ShapeInvalid("function_call", "not together with tool_choice")
        choice, path = fields["function_call"], "function_call"
        request.names["tool_choice"] = path
    if choice is not None:
        own["tool_choice"], tools = shaped_choice(choice, tools, path)
    # No tools are as good as none.
    if tools:
        own["tools"] = tools


def _shape_output(fields: Mapping[str, Any], request: Shaped) -> None:
    """Find the one grammar that is asked for."""
    found: dict[str, Any] = {}
    if "grammar" in request.fields:
        found["grammar"] = shaped_grammar(request.fields["grammar"])
    for name in OUTPUT_FIELDS:
        if name in fields:
            grammar = grammar_of(name, fields[name])
            if grammar is not None:
                found[name] = grammar
    if len(found) > 1:
        first, second, *_ = found
        raise ShapeInvalid(second, f"not together with {first}: one grammar rules an answer")
    for name, grammar in found.items():
        request.fields["grammar"] = grammar
        if name != "grammar":
            request.names["grammar"] = name


def _shape_template(fields: Mapping[str, Any], request: Shaped) -> None:
    """Gather what goes to the chat template, and how the prompt ends."""
    own = request.fields
    given = own.pop("chat_template_kwargs", None)
    told = template_arguments(fields, own, request.names)
    arguments: dict[str, Any] = {}
    if given is not None:
        arguments |= as_mapping(given, "chat_template_kwargs", "an object")
    for name, value in told.items():
        if name in fields and name not in REASONING_FIELDS:
            arguments[name] = value
        else:
            arguments.setdefault(name, value)
    if arguments:
        own["chat_template_kwargs"] = arguments
    # One of the two follows from the other.
    if own.get("continue_final_message") is True and "add_generation_prompt" not in own:
        own["add_generation_prompt"] = False
