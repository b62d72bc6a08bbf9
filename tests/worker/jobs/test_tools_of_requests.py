"""Tools of a request: they constrain the output, stand in the prompt, and are named to readers."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineLimits, GrammarKind
from tokenbus.producer.contract.events import Finish, ToolCall
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.jobs.prompt import PromptPreparer

TOOL = {"type": "function", "function": {"name": "now", "parameters": {"properties": {}}}}


def prepare(tokenizer: Any = None, **fields: Any) -> Any:
    """Prepare a request as a worker does."""
    limits = EngineLimits(
        model="null", num_pages=100, page_size=16, max_model_len=4096, max_num_seqs=4,
        eos_token_ids=(0,), vocab_size=512,
    )  # fmt: skip
    request = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8} | fields
    preparer = PromptPreparer(tokenizer or build_null_tokenizer(), limits)
    return preparer.tokenise(preparer.read(json.dumps(request).encode()))


def test_calls_survive_the_wire() -> None:
    """What the terminal event carries, a reader gets."""
    finish = Finish("stop", tool_calls=(ToolCall(1, "abcdefghi", "now", '{"a": "ü"}', 4),))
    assert Finish.parse(finish.dump()) == finish
    assert "tool_calls" not in json.loads(Finish("stop").dump())


@pytest.mark.parametrize("choice", ["auto", "required", {"name": "now"}])
def test_tools_constrain_the_output_and_stand_in_the_prompt(choice: Any) -> None:
    """Unless the choice is none: then the job is as if no tools had been given."""
    with_tools = prepare(tools=[TOOL], tool_choice=choice)
    assert with_tools.params.grammar.kind is GrammarKind.LARK
    assert with_tools.chat == JobChat("hermes/none", {"now": {}})
    plain, none = prepare(), prepare(tools=[TOOL], tool_choice="none")
    assert none.prompt_ids == plain.prompt_ids
    assert len(with_tools.prompt_ids) > len(plain.prompt_ids)
    assert none.params.grammar is None
    assert none.chat is plain.chat is None


def test_content_by_a_schema_stands_beside_tools() -> None:
    """Where the model is free to call; where it has to there is no content, and without tools no
    call.
    """
    schema = {"kind": "json_schema", "source": '{"const": "a word"}'}
    asked = {"tools": [TOOL], "grammar": schema}
    free = prepare(**asked).params.grammar
    assert free.kind is GrammarKind.LARK
    assert "a word" in free.source
    assert "a word" not in prepare(**asked, tool_choice="required").params.grammar.source
    assert prepare(**asked, tool_choice="none").params.grammar.kind is GrammarKind.JSON_SCHEMA


def test_reasoning_is_read_where_the_template_opens_it() -> None:
    """Also without tools: the prompt ends inside the block, so that the answer begins there."""
    turn = "{{ message.role }}: {{ message.content }}\n"
    opened = "{% if add_generation_prompt %}assistant:\n<think>\n{% endif %}"
    tokenizer = build_null_tokenizer()
    tokenizer.chat_template = f"{{% for message in messages %}}{turn}{{% endfor %}}{opened}"
    job = prepare(tokenizer)
    assert job.chat == JobChat("hermes/think-in-prompt", {}, starts_in_reasoning=True)
    assert prepare(tokenizer, tools=[TOOL]).chat.tools == {"now": {}}


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"tools": [TOOL, TOOL]}, "tools", "same name"),
        ({"tools": [TOOL], "tool_choice": {"name": "later"}}, "tool_choice", "later"),
        ({"tools": [TOOL], "tool_choice": "never"}, "tool_choice", "'auto'"),
        ({"tool_choice": "required"}, "tool_choice", "together with tools"),
        (
            {"tools": [TOOL], "grammar": {"kind": "lark", "source": 'start: "a"'}},
            "grammar",
            "stands not beside tools",
        ),
        (
            {"tools": [{"function": {"name": "now", "parameters": {"not": {}}}}]},
            "tools.0.function.parameters",
            "nothing can satisfy it",
        ),
        (
            {"tools": [{"function": {"name": "now", "parameters": {"type": "array"}}}]},
            "tools.0.function.parameters",
            "must be of type object",
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
