"""Conversations with tools, through templates that know them and templates that do not."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.text.chat_prompt import ChatRenderer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PLAIN = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
KNOWING = (
    "{% if tools %}<tools>{{ tools | tojson }}</tools>{% endif %}"
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "{% endfor %}[assistant]"
)
TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "now",
            "description": "The time in a town",
            "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
        },
    }
]
CALL = {
    "id": "a1B2c3D4e",
    "type": "function",
    "function": {"name": "now", "arguments": '{"town": "Oslo"}'},
}
HISTORY: list[dict[str, Any]] = [
    {"role": "user", "content": "What time is it?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "content": "12:40", "tool_call_id": "a1B2c3D4e"},
]


@pytest.fixture
def render(tokenizer: PreTrainedTokenizerFast) -> Any:
    """Return a function that renders through a template."""

    def through(template: str, messages: list[dict[str, Any]], *, tools: bool) -> str:
        own = copy.copy(tokenizer)
        own.chat_template = template
        chat = ChatRenderer(own)
        calling = chat.calling(tools_of(TOOLS)) if tools else None
        return chat.render(messages, TOOLS if tools else (), calling).text

    return through


def test_template_that_knows_tools_gets_them_and_objects_for_arguments(render: Any) -> None:
    """Arguments come back from clients as text; a template that dumps them gets the object."""
    text = render(KNOWING, HISTORY, tools=True)
    assert json.loads(text.split("<tools>")[1].split("</tools>")[0]) == TOOLS
    call = json.loads(text.split("<tool_call>")[1].split("</tool_call>")[0])
    assert call == {"name": "now", "arguments": {"town": "Oslo"}}
    assert "[system]" not in text
    assert "None" not in text


def test_template_without_tools_gets_them_in_the_system_message(render: Any) -> None:
    """The tools are described once, before or behind what the system message says already."""
    alone = render(PLAIN, HISTORY[:1], tools=True)
    assert alone.startswith("[system]You may call these functions:")
    assert '"The time in a town"' in alone
    with_own = render(PLAIN, [{"role": "system", "content": "Be brief."}, *HISTORY], tools=True)
    assert with_own.startswith("[system]Be brief.\n\nYou may call")
    assert with_own.count("[system]") == 1


def test_earlier_calls_stand_in_the_text_where_the_template_leaves_them_out(render: Any) -> None:
    """What the model said in a call is not lost on its next turn, tools given or not.

    The tokenizer has the mark of Mistral's calls as a token: its model writes calls with it.
    """
    written = '[TOOL_CALLS][{"name": "now", "arguments": {"town": "Oslo"}}]'
    for tools in (True, False):
        text = render(PLAIN, HISTORY, tools=tools)
        assert f"[assistant]{written}[tool]12:40[assistant]" in text


def test_calls_that_no_format_can_write_stand_in_the_text_as_json(render: Any) -> None:
    """A history that an earlier release stored may have a call that was cut."""
    function = {"name": "now", "arguments": '{"town": "Os'}
    turns = [HISTORY[0], {**HISTORY[1], "tool_calls": [{**CALL, "function": function}]}]
    said = render(PLAIN, turns, tools=False).split("[assistant]")[1]
    assert json.loads(said) == function


def test_messages_of_the_caller_are_left_as_they_were(render: Any) -> None:
    """Rendering changes a copy."""
    before = copy.deepcopy(HISTORY)
    for template in (PLAIN, KNOWING):
        render(template, HISTORY, tools=True)
    assert before == HISTORY
