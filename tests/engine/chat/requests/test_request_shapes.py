"""Requests as clients of several servers write them, and the one spelling that comes of them."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tokenbus.engine.chat.requests.bounds import MAX_GRAMMAR_LENGTH
from tokenbus.engine.chat.requests.request_shapes import FOREIGN_FIELDS, REQUEST_FIELDS
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.offline.offline_request import OfflineRequest, conversation_of
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid

USER = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object"}},
}
OTHER: dict[str, Any] = {"type": "function", "function": {"name": "g", "parameters": {}}}
OBJECT = {"kind": "json_schema", "source": '{"type":"object"}'}
CALL: dict[str, Any] = {
    "id": "c1",
    "type": "function",
    "function": {"name": "f", "arguments": '{"a":1}'},
}


def calling(**function: Any) -> dict[str, Any]:
    """Return a message with a good call and one that differs from it."""
    other = {**CALL, "id": "c2", "function": {**CALL["function"], **function}}
    return {"role": "assistant", "tool_calls": [CALL, other]}


class Answer(BaseModel):
    """An answer, as a model of pydantic."""

    number: int


OFF = {"enable_thinking": False, "thinking": False}


def told(**fields: Any) -> tuple[str, str]:
    """Return field and sentence with which both doors refuse a request, in Python and as JSON."""
    found = []
    with pytest.raises(RequestInvalid) as queue:
        JobRequest.build(**fields)
    found.append((queue.value.field, queue.value.message))
    with pytest.raises(RequestInvalid) as raw:
        JobRequest.parse(json.dumps(fields))
    found.append((raw.value.field, raw.value.message))
    with pytest.raises(RequestRejected) as offline:
        _offline(fields)
    found.append((offline.value.field, str(offline.value).split(": ", 1)[1]))
    assert len(set(found)) == 1, found
    return found[0]


def _offline(fields: dict[str, Any]) -> None:
    """Go through the offline door, which takes conversations apart from the rest."""
    argument = "messages" if "messages" in fields else "prompt"
    own = {name: value for name, value in fields.items() if name != argument}
    OfflineRequest.of(own, (), is_chat="messages" in fields)
    if "messages" in fields:
        conversation_of(fields["messages"])


def stored(**fields: Any) -> dict[str, Any]:
    """Return what is stored of a request that is given in Python, which JSON gives as well."""
    request = JobRequest.build(**fields)
    if not any(isinstance(value, type) for value in fields.values()):
        assert JobRequest.parse(json.dumps(fields)) == request
    wire: dict[str, Any] = json.loads(request.dump())
    del wire["v"]
    return wire


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({**USER, "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
         {"role": "user", "content": "a\nb"}),
        ({**USER, "content": ["a", {"type": "input_text", "text": "b", "cache_control": {"x": 1}}]},
         {"role": "user", "content": "a\nb"}),
        ({"role": "assistant", "content": None, "refusal": "No.", "annotations": [], "audio": None,
          "function_call": None, "tool_calls": None}, {"role": "assistant", "content": "No."}),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
         {"role": "assistant", "content": "No."}),
        ({"role": "assistant", "content": "x", "reasoning": "why"},
         {"role": "assistant", "content": "x", "reasoning_content": "why"}),
        ({"role": "assistant", "content": "x", "reasoning": "why", "reasoning_content": "why",
          "provider_specific_fields": {"a": 1}, "thinking_blocks": []},
         {"role": "assistant", "content": "x", "reasoning_content": "why"}),
        ({"role": "assistant", "content": [{"type": "thinking", "thinking": "why"},
                                           {"type": "text", "text": "x"}]},
         {"role": "assistant", "content": "x", "reasoning_content": "why"}),
        ({"role": "assistant", "content": [], "tool_calls": [{**CALL, "index": 0}]},
         {"role": "assistant", "tool_calls": [CALL]}),
        ({"role": "assistant", "parsed": {"a": 1}, "tool_calls": [
            {**CALL, "function": {**CALL["function"], "parsed_arguments": {"a": 1}}}]},
         {"role": "assistant", "tool_calls": [CALL]}),
        ({"role": "assistant", "tool_calls": [
            {**CALL, "function": {**CALL["function"], "arguments": " "}}]},
         {"role": "assistant", "tool_calls": [
             {**CALL, "function": {**CALL["function"], "arguments": "{}"}}]}),
        ({"role": "developer", "content": "d", "name": "shop", "unheard_of": None},
         {"role": "developer", "content": "d", "name": "shop"}),
    ],
)  # fmt: skip
def test_message_has_one_spelling(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """Parts, dumps of the client's models and fields of other servers are one message."""
    assert stored(messages=[USER, given]) == {"messages": [USER, expected]}


@pytest.mark.parametrize(
    ("ids", "results"),
    [
        (("c1", "c2"), ("c2", "c1")),
        (("c1", "c2"), ("c1", "c1")),
        (("c1", "c2"), (None, "c2")),
        (("c1", "c2"), ("c2", "")),
        ((None, None), ("c1", "c2")),
        ((None, None), (None, None)),
    ],
)
def test_results_find_their_calls(ids: tuple[Any, ...], results: tuple[Any, ...]) -> None:
    """By id, and in order where ids are missing; their content may be parts."""
    calls = [{**CALL, "id": each} for each in ids]
    part = {"type": "text", "text": "r"}
    told_back = [{"role": "tool", "tool_call_id": each, "content": [part]} for each in results]
    turns = [USER, {"role": "assistant", "tool_calls": calls}, *told_back]
    kept = [each["content"] for each in stored(messages=turns)["messages"][2:]]
    assert kept == ["r", "r"]


@pytest.mark.parametrize(
    ("results", "at"),
    [(("x",), 2), (("c1", "c2", "x"), 4), (("c1", None, None), 4), (("c1", "c2", ""), 4)],
)
def test_result_that_names_no_earlier_call_is_refused(results: tuple[Any, ...], at: int) -> None:
    """Templates would raise their own words, or leave it out."""
    turns = [{"role": "tool", "tool_call_id": each, "content": "r"} for each in results]
    found = told(messages=[USER, calling(), *turns])
    assert found == (f"messages.{at}.tool_call_id", "names no earlier call")
    orphan = {"role": "tool", "content": "r"}
    assert told(messages=[USER, orphan, calling()])[0] == "messages.1.tool_call_id"


def test_ids_that_are_numbers_become_text() -> None:
    """Clients count their calls; what is neither text nor a whole number is refused by its path."""
    calls = [{**CALL, "id": 1}, {"id": 2, "name": "f", "arguments": "{}"}]
    results = [{"role": "tool", "tool_call_id": each, "content": "r"} for each in ("2", 1)]
    turns = stored(messages=[USER, {"role": "assistant", "tool_calls": calls}, *results])
    _, call, *told_back = turns["messages"]
    assert [each["id"] for each in call["tool_calls"]] == ["1", "2"]
    assert [each["tool_call_id"] for each in told_back] == ["2", "1"]
    wrong_ids: list[Any] = [True, 1.0, 2**60, ["1"], {}]
    for wrong in wrong_ids:
        turn: dict[str, Any] = {"role": "assistant", "tool_calls": [{**CALL, "id": wrong}]}
        problem = "must be text or a whole number"
        assert told(messages=[USER, turn]) == ("messages.1.tool_calls.0.id", problem)
        turn = {"role": "tool", "tool_call_id": wrong, "content": "r"}
        assert told(messages=[USER, calling(), turn]) == ("messages.2.tool_call_id", problem)


def test_former_calls_and_results_are_those_of_tools() -> None:
    """`function_call` and the role `function` find each other by the function's name."""
    turns = [
        USER,
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "name": "f", "content": "r"},
    ]
    wire = stored(messages=turns, functions=[TOOL["function"]], function_call={"name": "f"})
    _, call, result = wire["messages"]
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}
    assert result == {
        "role": "tool", "name": "f", "content": "r", "tool_call_id": call["tool_calls"][0]["id"],
    }  # fmt: skip
    assert (wire["tool_choice"], wire["parallel_tool_calls"]) == ({"name": "f"}, False)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"stop": "x"}, {"stop": ["x"]}),
        ({"stop": None, "temperature": None, "n": None, "tools": None, "seed": None}, {}),
        ({"max_completion_tokens": 5}, {"max_tokens": 5}),
        ({"max_completion_tokens": 5, "max_tokens": 5}, {"max_tokens": 5}),
        ({"logprobs": True}, {"logprobs": 0}),
        ({"logprobs": True, "top_logprobs": 3}, {"logprobs": 3}),
        ({"logprobs": False, "top_logprobs": 0}, {}),
        ({"logit_bias": {"5": 1}}, {"logit_bias": {"5": 1.0}}),
        ({"top_k": -1}, {"top_k": 0}),
        ({"response_format": {"type": "text"}}, {}),
        ({"response_format": {"type": "json_object"}}, {"grammar": OBJECT}),
        ({"response_format": {"type": "json_object", "schema": {"type": "object"}}},
         {"grammar": OBJECT}),
        ({"response_format": {"type": "json_schema", "json_schema": {
            "name": "x", "strict": True, "schema": {"type": "object"}}}}, {"grammar": OBJECT}),
        ({"guided_json": {"type": "object"}}, {"grammar": OBJECT}),
        ({"guided_json": '{"type":"object"}'}, {"grammar": OBJECT}),
        ({"guided_regex": "a+"}, {"grammar": {"kind": "regex", "source": "a+"}}),
        ({"guided_choice": ["a", "b"]}, {"grammar": {"kind": "choice", "source": '["a","b"]'}}),
        ({"guided_grammar": "start: /a/"}, {"grammar": {"kind": "lark", "source": "start: /a/"}}),
        ({"structured_outputs": {"json": {"type": "object"}, "regex": None}}, {"grammar": OBJECT}),
        ({"thinking": {"type": "disabled"}}, {"chat_template_kwargs": OFF}),
        ({"extra_body": {"thinking": {"type": "enabled", "budget_tokens": 9}}},
         {"chat_template_kwargs": {"enable_thinking": True, "thinking": True},
          "max_reasoning_tokens": 9}),
        ({"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": False}},
         {"chat_template_kwargs": {"thinking": False, "enable_thinking": True}}),
        ({"reasoning": {"effort": "low", "exclude": True}},
         {"chat_template_kwargs": {"reasoning_effort": "low"}}),
        ({"reasoning": {"enabled": False}}, {"chat_template_kwargs": OFF}),
        ({"extra_body": {"structured_outputs": {"choice": ["a"]}}},
         {"grammar": {"kind": "choice", "source": '["a"]'}}),
        ({"grammar": {"kind": "json_schema", "source": {"type": "object"}}}, {"grammar": OBJECT}),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "f"}}},
         {"tools": [TOOL], "tool_choice": {"name": "f"}}),
        ({"tools": [TOOL, OTHER], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}}},
         {"tools": [TOOL], "tool_choice": "required"}),
        ({"tools": [{**TOOL, "strict": True}]}, {"tools": [TOOL]}),
        ({"tools": []}, {}),
        ({"user": "u", "store": True, "stream": True, "stream_options": {"include_usage": True},
          "service_tier": "flex", "prompt_cache_key": "k", "safety_identifier": "s"}, {}),
        ({"include_stop_str_in_output": True}, {"include_stop": True}),
        ({"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
         {"chat_template_kwargs": {"enable_thinking": False, "reasoning_effort": "low"}}),
        ({"continue_final_message": True},
         {"add_generation_prompt": False, "continue_final_message": True}),
        ({"max_reasoning_tokens": 0}, {"max_reasoning_tokens": 0}),
        ({"modalities": ["text"], "prediction": None, "audio": None, "best_of": 1}, {}),
    ],
)  # fmt: skip
def test_field_has_one_spelling(given: dict[str, Any], expected: dict[str, Any]) -> None:
    """What OpenAI, vLLM and others call otherwise is stored as ours, null is the default."""
    wire = stored(messages=[USER], **given)
    del wire["messages"]
    for tool in wire.get("tools", ()):
        tool.setdefault("type", "function")
        tool["function"].setdefault("parameters", {})
    assert wire == expected
    # The offline door comes to the same.
    OfflineRequest.of(given, (), is_chat=True)


def test_model_of_pydantic_is_a_schema() -> None:
    """The class that the client's `parse` takes stands for its schema."""
    for name in ("response_format", "guided_json"):
        source = json.loads(stored(prompt="a", **{name: Answer})["grammar"]["source"])
        assert source == Answer.model_json_schema()


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"messages": [{**USER, "content": [{"type": "image_url", "image_url": {"url": "u"}}]}]},
         "messages.0.content.0"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": 5}]}]},
         "messages.0.content.0.text"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": "a", "colour": 1}]}]},
         "messages.0.content.0.colour"),
        ({"messages": [{**USER, "colour": "red"}]}, "messages.0.colour"),
        ({"messages": [{**USER, "audio": {"id": "a"}}]}, "messages.0.audio"),
        ({"messages": [{"content": "a"}]}, "messages.0.role"),
        ({"messages": [USER], "model": ""}, "model"),
        ({"messages": [USER], "model": "m" * 300}, "model"),
        ({"messages": [USER], "metadata": {"a": 1}}, "metadata.a"),
        ({"messages": [USER], "metadata": ["a"]}, "metadata"),
        ({"messages": [USER], "priority": "high"}, "priority"),
        ({"messages": [USER], "priority": 3}, "priority"),
        ({"messages": [{**USER, "content": "\ud800"}]}, "messages.0.content"),
        ({"messages": [USER], "stop": ["\udc00x"]}, "stop.0"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "c"}]}]},
         "messages.0.tool_calls.0.function"),
        ({"messages": [USER], "extra_body": {"extra_body": {"top_k": 1}}},
         "extra_body.extra_body"),
        ({"messages": [USER], "thinking": {"type": "on"}}, "thinking.type"),
        ({"messages": [USER], "thinking": {"type": "enabled", "budget_tokens": -1}},
         "thinking.budget_tokens"),
        ({"messages": [USER], "thinking": {"type": "enabled", "depth": 3}}, "thinking.depth"),
        ({"messages": [USER], "thinking": False, "reasoning": {"enabled": True}},
         "reasoning.enabled"),
        ({"messages": [USER], "reasoning": {"effort": "low"}, "reasoning_effort": "high"},
         "reasoning.effort"),
        ({"messages": [USER], "reasoning": {"enabled": "no"}}, "reasoning.enabled"),
        ({"messages": []}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": [USER, {"role": "function", "name": "f", "content": "r"}]},
         "messages.1.name"),
        ({"messages": [{"role": "assistant", "tool_calls": [{"type": "custom"}]}]},
         "messages.0.tool_calls.0.type"),
        *(({"messages": [USER, calling(arguments=text)]},
           "messages.1.tool_calls.1.function.arguments")
          for text in ('{"city":"OSL', "[1]", '"x"', "null", "{'a': 1}", '{"a": NaN}', "[" * 9999,
                       '{"a": "\\ud800"}', '{"a":' * 500 + "1" + "}" * 500)),
        *(({"messages": [USER, calling(name=name)]}, "messages.1.tool_calls.1.function.name")
          for name in ("", " ", None, 5)),
        *(({"messages": [{**USER, "role": role, "tool_calls": [CALL]}]}, "messages.0.tool_calls")
          for role in ("user", "system", "tool")),
        ({"messages": [{**USER, "function_call": CALL["function"]}]}, "messages.0.function_call"),
        ({"messages": [USER], "max_completion_tokens": 5, "max_tokens": 6},
         "max_completion_tokens"),
        ({"messages": [USER], "max_completion_tokens": -5}, "max_completion_tokens"),
        ({"messages": [USER], "top_logprobs": 3}, "top_logprobs"),
        ({"messages": [USER], "logprobs": True, "top_logprobs": 30}, "top_logprobs"),
        ({"messages": [USER], "response_format": {"type": "grammar"}}, "response_format.type"),
        ({"messages": [USER], "guided_regex": "a", "guided_choice": ["a"]}, "guided_choice"),
        ({"messages": [USER], "guided_choice": [1]}, "guided_choice"),
        ({"messages": [USER], "guided_choice": []}, "guided_choice"),
        ({"messages": [USER], "guided_json": "{"}, "guided_json"),
        ({"messages": [USER], "prompt": "a"}, "prompt"),
        ({"messages": [USER], "token_ids": [1]}, "prompt"),
        ({"messages": [USER], "tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"messages": [USER], "tools": [{"type": "function", "function": {"name": "a b"}}]},
         "tools.0.function.name"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": {"name": "h"}}, "tool_choice"),
        ({"messages": [USER], "tools": [TOOL], "tool_choice": "sometimes"}, "tool_choice"),
        ({"messages": [USER], "tools": [TOOL, TOOL]}, "tools"),
        ({"messages": [USER], "tool_choice": "required"}, "tool_choice"),
        ({"messages": [USER], "modalities": ["text", "audio"]}, "modalities"),
        ({"messages": [USER], "prediction": {"type": "content"}}, "prediction"),
        ({"messages": [USER], "web_search_options": {}}, "web_search_options"),
        ({"messages": [USER], "colour": "red"}, "colour"),
        ({"messages": [USER], "stop": ["a", ""]}, "stop.1"),
        ({"messages": [USER], "temperature": "hot"}, "temperature"),
        ({"messages": [USER], "logit_bias": {"five": 1}}, "logit_bias"),
        ({"messages": [USER], "n": 1000}, "n"),
        ({"messages": [USER], "min_tokens": 20, "max_tokens": 10}, "min_tokens"),
        ({"messages": [USER], "continue_final_message": True, "add_generation_prompt": True},
         "continue_final_message"),
        ({"messages": [USER], "chat_template_kwargs": {"messages": []}},
         "chat_template_kwargs.messages"),
        ({"messages": [USER], "chat_template_kwargs": {"add_generation_prompt": False}},
         "chat_template_kwargs.add_generation_prompt"),
        ({"prompt": "a", "continue_final_message": True}, "continue_final_message"),
        ({"prompt": "a", "tools": [TOOL]}, "tools"),
    ],
)  # fmt: skip
def test_both_doors_refuse_in_one_sentence(given: dict[str, Any], field: str) -> None:
    """Python, a raw body and the offline API name the same part in the same words."""
    assert told(**given)[0] == field


def _deep() -> list[Any]:
    inner: list[Any] = []
    for _ in range(2000):
        inner = [inner]
    return inner


ANYTHING: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**400, float("nan"), "", "x", "\ud800", [], [None], [[]], {},
    {"type": "function"}, {"type": "text", "text": 5}, {"name": "f"}, {"type": []}, {1: 2}, (1,),
    b"x", object(), int, {"function": {"name": []}}, {"a": {"b": [1]}}, _deep(),
]  # fmt: skip
WHOLE: list[dict[str, Any]] = [
    {"messages": [{**USER, "content": [{"type": "text", "text": "a"}]}], "stop": ["x"]},
    {"messages": [USER, {"role": "assistant", "tool_calls": [CALL], "reasoning": "why"}]},
    {"messages": [USER], "tools": [TOOL, OTHER], "tool_choice": {
        "type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [TOOL]}}},
    {"messages": [USER], "response_format": {
        "type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}},
    {"messages": [USER], "structured_outputs": {"choice": ["a"]}, "logit_bias": {"5": 1}},
    {"messages": [USER], "functions": [TOOL["function"]], "chat_template_kwargs": {"a": [1]}},
]  # fmt: skip
# What offline means nothing, or comes beside the fields.
AT_QUEUES = frozenset(
    {
        "v", "id", "tenant", "priority", "deadline_s", "not_before_s", "idempotency_key",
        "cache_group", "cache_secret", "metadata", "traceparent", "callback_url", "prompt",
        "token_ids", "model", "extra_body",
    }
)  # fmt: skip


def _mutated(rng: random.Random, value: Any) -> Any:
    """Return a value with another one somewhere in it."""
    if rng.random() < 0.2 or not value or not isinstance(value, (dict, list)):
        return rng.choice(ANYTHING)
    copied: Any = dict(value) if isinstance(value, dict) else list(value)
    at = rng.choice(list(copied)) if isinstance(copied, dict) else rng.randrange(len(copied))
    copied[at] = _mutated(rng, copied[at])
    return copied


def test_nothing_raw_leaves_the_doors() -> None:
    """Whatever stands in whatever place, both take a request or refuse it in one sentence."""
    rng = random.Random(5)
    fields = sorted((REQUEST_FIELDS | FOREIGN_FIELDS) - AT_QUEUES)
    num_taken = 0
    for _ in range(1500):
        given = dict(rng.choice(WHOLE))
        name = rng.choice(fields) if rng.random() < 0.5 else rng.choice(list(given))
        given[name] = _mutated(rng, given.get(name))
        if given.get("messages") is None:
            continue
        found = []
        for door in (lambda: JobRequest.build(**given), lambda: _offline(given)):  # noqa: B023
            try:
                door()
            except (RequestInvalid, RequestRejected) as error:
                found.append(str(error))
        assert len(found) in (0, 2), (name, found)
        assert len(set(found)) <= 1, found
        num_taken += not found
    assert 200 < num_taken < 1300


def test_page_of_requests_has_every_field() -> None:
    """docs/requests.md says of every field that is known what becomes of it."""
    page = (Path(__file__).parents[4] / "docs" / "requests.md").read_text()
    told = set(re.findall(r"[a-z_]+", " ".join(re.findall(r"`[^`]+`", page))))
    own = {"v", "bad_words", "ignore_eos", "min_p", "min_tokens", "n", "priority", "tenant"}
    own |= {"frequency_penalty", "presence_penalty", "repetition_penalty", "temperature", "top_p"}
    own |= {"include_stop", "stop_token_ids", "cache_secret"}
    assert (REQUEST_FIELDS | FOREIGN_FIELDS) - own <= told


def test_choice_of_a_hundred_thousand_texts_passes_the_doors() -> None:
    """Forty characters each; past the longest source both doors say how long it may be."""
    labels = [f"{idx:040}" for idx in range(100_000)]
    grammar = JobRequest.build(prompt="x", guided_choice=labels).grammar
    assert grammar is not None
    assert json.loads(grammar.source) == labels
    field, reason = told(prompt="x", guided_choice=[f"{label}{'x' * 12}" for label in labels])
    assert field == "guided_choice"
    assert str(MAX_GRAMMAR_LENGTH) in reason
