"""Tool calls of a queued job: asked for in the request, read back into the terminal event."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenbus.engine.grammar.tool_reader import ToolReader
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineLimits, GrammarKind
from tokenbus.producer.contract.events import Finish, ToolCall
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.publishing.text.tool_output import read_tool_calls

CALL = '<tool_call>\n{"name": "now", "arguments": {"town": "Oslo"}}\n</tool_call>'
TOOL = {"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}}


def prepare(**fields: Any) -> Any:
    """Prepare a request as a worker does."""
    limits = EngineLimits(
        model="null", num_pages=100, page_size=16, max_model_len=4096, max_num_seqs=4,
        eos_token_ids=(0,), vocab_size=512,
    )  # fmt: skip
    request = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8} | fields
    preparer = PromptPreparer(build_null_tokenizer(), limits)
    return preparer.tokenise(preparer.read(json.dumps(request).encode()))


def test_calls_of_every_choice_have_their_place_and_an_id_of_nine() -> None:
    """Ids differ, depend on the job alone, and the text before the calls is told apart."""
    reader = ToolReader("hermes", {"now": {}})
    texts = [CALL, "no call", f"Let me look. {CALL}\n{CALL}"]
    calls = read_tool_calls(reader, "job-1", texts)
    assert [(call.choice, call.at) for call in calls] == [(0, 0), (2, 12), (2, 12)]
    assert {call.arguments for call in calls} == {'{"town": "Oslo"}'}
    assert len({call.id for call in calls}) == 3
    assert all(len(call.id) == 9 and call.id.isalnum() for call in calls)
    assert calls == read_tool_calls(reader, "job-1", texts)
    assert calls[0].id != read_tool_calls(reader, "job-2", texts)[0].id


def test_calls_survive_the_wire() -> None:
    """What the terminal event carries, a reader gets."""
    finish = Finish("stop", tool_calls=(ToolCall(1, "abcdefghi", "now", '{"a": "ü"}', 4),))
    assert Finish.parse(finish.dump()) == finish
    assert "tool_calls" not in json.loads(Finish("stop").dump())


def test_marker_that_is_a_special_token_need_not_be_in_the_text() -> None:
    """A detokeniser leaves special tokens out; the calls are found all the same."""
    reader = ToolReader("mistral", {"now": {}}, "[TOOL_CALLS]")
    [call] = read_tool_calls(reader, "job", ['[{"name": "now", "arguments": {}}]'])
    assert (call.name, call.at) == ("now", 0)


@pytest.mark.parametrize("choice", ["auto", "required", {"name": "now"}])
def test_tools_constrain_the_output_and_stand_in_the_prompt(choice: Any) -> None:
    """Unless the choice is none: then the job is as if no tools had been given."""
    with_tools = prepare(tools=[TOOL], tool_choice=choice)
    assert with_tools.params.grammar.kind is GrammarKind.LARK
    assert list(with_tools.tool_reader.schemas) == ["now"]
    plain, none = prepare(), prepare(tools=[TOOL], tool_choice="none")
    assert none.prompt_ids == plain.prompt_ids
    assert len(with_tools.prompt_ids) > len(plain.prompt_ids)
    assert none.params.grammar is None
    assert none.tool_reader is None


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"tools": [TOOL, TOOL]}, "tools", "same name"),
        ({"tools": [TOOL], "tool_choice": {"name": "later"}}, "tool_choice", "later"),
        ({"tools": [TOOL], "tool_choice": "never"}, "tool_choice", "'auto'"),
        ({"tool_choice": "required"}, "tool_choice", "together with tools"),
        (
            {"tools": [TOOL], "grammar": {"kind": "regex", "source": "a"}},
            "grammar",
            "not together with tools",
        ),
        (
            {"tools": [{"function": {"name": "now", "parameters": {"not": {}}}}]},
            "tools",
            "now: .*keyword 'not'",
        ),
        (
            {"tools": [{"function": {"name": "now", "parameters": {"type": "array"}}}]},
            "tools",
            "type object",
        ),
    ],
)
def test_tools_that_cannot_be_used_are_refused_by_field(
    fields: dict[str, Any], field: str, message: str
) -> None:
    """The job fails alone, and says which field is wrong and why."""
    with pytest.raises(JobRefused, match=message) as refused:
        prepare(**fields)
    assert refused.value.field == field
