"""Requests that the official client of OpenAI makes: its bodies, taken at its transport.

    python tests/support/clients/openai_requests.py tests/producer/contract/openai_requests.json

writes them anew. Nothing is sent anywhere.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable

MODEL = "smollm2-135m"
_SAID: dict[str, Any] = {
    "role": "assistant",
    "content": "Two parcels are late.",
    "refusal": None,
    "annotations": [],
}
_CALLED: dict[str, Any] = {
    **_SAID,
    "content": None,
    "tool_calls": [
        {"id": "call_1", "type": "function",
         "function": {"name": "find_parcel", "arguments": '{"number": 7}'}},
        {"id": "call_2", "type": "function",
         "function": {"name": "find_parcel", "arguments": '{"number": 8}'}},
    ],
}  # fmt: skip
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "find_parcel",
        "description": "Find a parcel by its number.",
        "parameters": {
            "type": "object",
            "properties": {"number": {"type": "integer"}},
            "required": ["number"],
            "additionalProperties": False,
        },
        "strict": True,
    },
}
_OTHER = {"type": "function", "function": {"name": "close_shop"}}
_USER = {"role": "user", "content": "Where are parcels 7 and 8?"}


class Parcel(BaseModel):
    """A parcel, as an answer is to describe it."""

    number: int
    state: Literal["late", "there"]
    note: str | None


class _Catch:
    """A client that sends nothing: each body is kept, and answered by the message given."""

    def __init__(self) -> None:
        openai: Any = import_module("openai")
        # The transport of the HTTP library that this release of the client is made for.
        http: Any = sys.modules["httpx2" if "httpx2" in sys.modules else "httpx"]
        self._http = http
        self.answer: dict[str, Any] = _SAID
        self.body: dict[str, Any] = {}
        transport = http.MockTransport(self._take)
        self.client = openai.OpenAI(
            api_key="none",
            base_url="http://127.0.0.1:9/v1",
            max_retries=0,
            http_client=http.Client(transport=transport),
        )

    def _take(self, request: Any) -> Any:
        self.body = json.loads(request.content)
        choice = {"index": 0, "finish_reason": "stop", "message": self.answer}
        wire = {"id": "c", "object": "chat.completion", "created": 1, "model": MODEL}
        return self._http.Response(200, json={**wire, "choices": [choice]})


def _requests(catch: _Catch) -> dict[str, Callable[[], Any]]:
    """Return what makes the client send each request."""
    create = catch.client.chat.completions.create
    parts: Any = [{"type": "text", "text": "Where are"}, {"type": "text", "text": "my parcels?"}]
    user: Any = [_USER]
    tool: Any = TOOL
    with_tools: dict[str, Any] = {"model": MODEL, "messages": user, "tools": [tool, _OTHER]}

    def results() -> Any:
        """Send the message that the client has read back, with the results of its calls."""
        catch.answer = _CALLED
        first = create(**with_tools, parallel_tool_calls=True)
        catch.answer = _SAID
        turns: Any = [
            *user,
            first.choices[0].message,
            {"role": "tool", "tool_call_id": "call_1", "content": "late"},
            {"role": "tool", "tool_call_id": "call_2", "content": parts},
        ]
        return create(**{**with_tools, "messages": turns})

    def dump() -> Any:
        """Send a message of the assistant as its model dumps it."""
        said: Any = create(model=MODEL, messages=user).choices[0].message.model_dump()
        return create(model=MODEL, messages=[*user, said, *user])

    def parsed() -> Any:
        catch.answer = {**_SAID, "content": '{"number": 7, "state": "late", "note": null}'}
        try:
            return catch.client.chat.completions.parse(
                model=MODEL, messages=user, response_format=Parcel
            )
        finally:
            catch.answer = _SAID

    schema: Any = {
        "type": "json_schema",
        "json_schema": {"name": "parcel", "schema": {"type": "object"}, "strict": False},
    }
    named: Any = {"type": "function", "function": {"name": "find_parcel"}}
    allowed: Any = {
        "type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [named]},
    }  # fmt: skip
    both: Any = {**with_tools, "model": MODEL}
    developer: Any = [{"role": "developer", "content": "Be brief.", "name": "shop"}, *user]
    return {
        "plain": lambda: create(model=MODEL, messages=user),
        "parts": lambda: create(model=MODEL, messages=[{"role": "user", "content": parts}]),
        "developer": lambda: create(model=MODEL, messages=developer),
        "dumped": dump,
        "tools": lambda: create(**both, parallel_tool_calls=False),
        "tool results": results,
        "required": lambda: create(**both, tool_choice="required"),
        "named": lambda: create(**both, tool_choice=named),
        "allowed": lambda: create(**both, tool_choice=allowed),
        "text": lambda: create(model=MODEL, messages=user, response_format={"type": "text"}),
        "json": lambda: create(model=MODEL, messages=user, response_format={"type": "json_object"}),
        "schema": lambda: create(model=MODEL, messages=user, response_format=schema),
        "parse": parsed,
        "sampling": lambda: create(
            model=MODEL, messages=user, seed=7, n=2, stop="\n", temperature=0.5, top_p=0.9,
            presence_penalty=0.1, frequency_penalty=0.2, logit_bias={"5": -100, "6": 1},
            max_completion_tokens=12,
        ),
        "logprobs": lambda: create(
            model=MODEL, messages=user, logprobs=True, top_logprobs=3, stop=["\n", "."],
            max_tokens=12,
        ),
        "books": lambda: create(
            model=MODEL, messages=user, user="u1", safety_identifier="u1", store=True,
            metadata={"shop": "1"}, service_tier="auto", prompt_cache_key="shop",
            reasoning_effort="low", modalities=["text"],
        ),
        "stream": lambda: create(
            model=MODEL, messages=user, stream=False, extra_body={"top_k": -1, "min_p": 0.1},
        ),
    }  # fmt: skip


def recorded() -> dict[str, dict[str, Any]]:
    """Return the body of each request, by its name, as the installed client writes it."""
    catch = _Catch()
    bodies = {}
    for name, send in _requests(catch).items():
        send()
        bodies[name] = catch.body
    return bodies


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(recorded(), indent=1, ensure_ascii=False) + "\n")
