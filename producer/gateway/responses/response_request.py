"""A request to create a response, checked, and the fields of the job that answers it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.requests.bounds import NUMBERS
from tokenbus.engine.chat.requests.json_values import check_json
from tokenbus.producer.gateway.responses.input_items import (
    InputMessages,
    checked_items,
    invalid,
    referred_id,
)
from tokenbus.producer.stored.response_record import LOGPROBS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Told back by the response as they came.
_TOLD = (
    "include", "instructions", "max_output_tokens", "max_tool_calls", "metadata",
    "parallel_tool_calls", "prompt_cache_key", "reasoning", "safety_identifier", "service_tier",
    "temperature", "text", "tool_choice", "tools", "top_logprobs", "top_p", "user",
)  # fmt: skip
# Fields of a job under the same name; those of vLLM's own are given beside the others.
_SAME = (
    "temperature", "top_p", "tools", "tool_choice", "parallel_tool_calls", "metadata", "seed",
    "stop", "top_k", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty",
    "chat_template_kwargs", "callback_url",
)  # fmt: skip
_READ_HERE = (
    "model", "input", "stream", "stream_options", "background", "store", "previous_response_id",
    "truncation",
)  # fmt: skip
# What cannot be carried out, with the values that ask for nothing.
_REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "conversation": ("no conversations are kept; give previous_response_id", ()),
    "prompt": ("no prompts are kept; give input", ()),
    "truncation": ("no input is cut; give less, or leave it out", ("disabled",)),
    "context_management": ("no input is compacted", ([],)),
}
# Of what may be included, these but for the logprobs are there in any case or never: tools that
# others run are refused, so that nothing has their results.
_INCLUDED = frozenset(
    {
        LOGPROBS, "reasoning.encrypted_content", "message.input_image.image_url",
        "file_search_call.results", "web_search_call.results", "web_search_call.action.sources",
        "code_interpreter_call.outputs", "computer_call_output.output.image_url",
    }
)  # fmt: skip
KNOWN_FIELDS = frozenset({*_TOLD, *_SAME, *_READ_HERE, *_REFUSED})
_FLAGS = ("stream", "background", "store")
_TEXT_FIELDS = ("model", "instructions", "previous_response_id")
MAX_ANCESTORS = 1000


@dataclass(slots=True)
class ResponseRequest:
    """A request whose own fields are as they have to be; those of its job are checked by it.

    unknown: names of fields that nothing is known of.
    """

    given: dict[str, Any]
    model: str | None
    previous_id: str | None
    is_stream: bool
    is_background: bool
    is_stored: bool
    unknown: tuple[str, ...] = ()
    told: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, body: Any) -> ResponseRequest:
        """Check a decoded body. Raises: ApiError 400 with the field."""
        if not isinstance(body, dict):
            raise invalid("body", "must be a JSON object")
        given = {name: value for name, value in body.items() if value is not None}
        for name, value in given.items():
            _check_value(name, value)
        _check_own(given)
        request = cls(
            given,
            model=given.get("model"),
            previous_id=given.get("previous_response_id"),
            is_stream=given.get("stream", False),
            is_background=given.get("background", False),
            is_stored=given.get("store", True),
            unknown=tuple(sorted(set(given) - KNOWN_FIELDS)),
            told={name: given[name] for name in _TOLD if name in given},
        )
        if request.is_background and not request.is_stored:
            raise invalid("store", "a response in the background has to be stored")
        if "input" not in given and request.previous_id is None:
            raise invalid("input", "is missing")
        return request

    def items(
        self, response_id: str, earlier: Mapping[str, dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Return the input items. Raises: ApiError 400 with the path."""
        if "input" not in self.given:
            return []
        return checked_items(self.given["input"], response_id, earlier)

    def references(self) -> list[tuple[int, str]]:
        """Return the places of the input items that stand for earlier ones, and their ids."""
        given = self.given.get("input")
        items = given if isinstance(given, list) else []
        return [
            (index, item_id)
            for index, item in enumerate(items)
            if isinstance(item, dict) and (item_id := referred_id(item)) is not None
        ]

    def job_fields(
        self, earlier: Sequence[dict[str, Any]], items: Sequence[dict[str, Any]], max_tokens: int
    ) -> tuple[dict[str, Any], InputMessages]:
        """Return fields of the job, in any of the spellings of requests, and its messages.

        Args:
            earlier: items of the responses that this one goes on from.
            max_tokens: of an answer whose request names no bound.
        Raises: ApiError 400 with the field.
        """
        messages = InputMessages()
        messages.add_instructions(self.given.get("instructions"))
        messages.add(earlier, "previous_response_id")
        messages.add(items, "input")
        fields = {name: self.given[name] for name in _SAME if name in self.given}
        fields["messages"] = messages.messages
        fields["max_tokens"] = self.given.get("max_output_tokens", max_tokens)
        reasoning = _object(self.given, "reasoning")
        if reasoning.get("effort") is not None:
            if not isinstance(reasoning["effort"], str):
                raise invalid("reasoning.effort", "must be text")
            fields["reasoning_effort"] = reasoning["effort"]
        if LOGPROBS in (self.given.get("include") or ()):
            fields |= {"logprobs": True, "top_logprobs": self.given.get("top_logprobs", 0)}
        text = _object(self.given, "text")
        if text.get("format") is not None:
            fields["response_format"] = _format(text["format"])
        if text.get("verbosity") is not None:
            fields["verbosity"] = text["verbosity"]
        return fields, messages


def field_as_sent(path: str, messages: InputMessages) -> str:
    """Return the path of a job's field as the sender of the response has spelled it."""
    head, dot, rest = path.partition(".")
    spelled = {
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
        "grammar": "text.format",
        "verbosity": "text.verbosity",
        "reasoning_effort": "reasoning.effort",
    }
    if head == "messages":
        return messages.told(path)
    return f"{spelled[head]}{dot}{rest}" if head in spelled else path


def _check_value(name: str, value: Any) -> None:
    """Check that a value can be told again as JSON. Raises: ApiError 400."""
    try:
        check_json({"x": value})
    except UnicodeEncodeError:
        raise invalid(name, "holds half a surrogate pair, which UTF-8 does not carry") from None
    except ValueError as error:
        raise invalid(name, f"holds {error}") from None


def _check_own(given: Mapping[str, Any]) -> None:
    """Check the fields that no job has. Raises: ApiError 400."""
    for names, kind, told in ((_FLAGS, bool, "true or false"), (_TEXT_FIELDS, str, "text")):
        for name in names:
            if not isinstance(given.get(name, kind()), kind):
                raise invalid(name, f"must be {told}")
    for name, (why, harmless) in _REFUSED.items():
        if name in given and not any(given[name] == each for each in harmless):
            raise invalid(name, why)
    for index, each in enumerate(_listed(given, "include")):
        if not isinstance(each, str) or each not in _INCLUDED:
            raise invalid(f"include.{index}", "is not told here")
    num_most = int(NUMBERS["logprobs"].high)
    top = given.get("top_logprobs", 0)
    if type(top) is not int or not 0 <= top <= num_most:
        raise invalid("top_logprobs", f"must be a whole number from 0 to {num_most}")
    if top and LOGPROBS not in (given.get("include") or ()):
        raise invalid("top_logprobs", f"only together with include: {LOGPROBS}")


def _object(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = given.get(name) or {}
    if not isinstance(value, dict):
        raise invalid(name, "must be an object")
    return value


def _listed(given: Mapping[str, Any], name: str) -> list[Any]:
    value = given.get(name) or []
    if not isinstance(value, list):
        raise invalid(name, "must be a list")
    return value


def _format(given: Any) -> dict[str, Any]:
    """Return a format as chat completions spell it: a schema is nested there."""
    if not isinstance(given, dict):
        raise invalid("text.format", "must be an object with a type")
    if given.get("type") != "json_schema":
        return given
    return {"type": "json_schema", "json_schema": {k: v for k, v in given.items() if k != "type"}}
