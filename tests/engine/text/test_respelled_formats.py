"""Calls that are asked for are spelled as the model's own template spells calls."""

from __future__ import annotations

from typing import Any

import pytest
from family_tokenizers import family_tokenizer

from tokenbus.engine.chat.call_formats import CALL_FORMATS
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.text.chat_prompt import ChatRenderer
from tokenbus.engine.text.templates.respelled_format import respelled

TURN = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
)
END = "{% endfor %}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
# Written here, each in the form of its family but for the white space.
SPELLINGS = {
    "hermes": (
        TURN + "<tool_call>\n{{ c.function | tojson }}</tool_call>" + END,
        '<tool_call>\n{"name": "f", "arguments": {"n": 1}}</tool_call>',
    ),
    "glm-4": (
        TURN + "<tool_call>{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
        "<arg_key>{{ k }}</arg_key><arg_value>{{ v if v is string else v | tojson }}</arg_value>"
        "{% endfor %}</tool_call>" + END,
        "<tool_call>f<arg_key>n</arg_key><arg_value>1</arg_value></tool_call>",
    ),
    "command-a": (
        TURN.replace("{% for c", "{% if m.tool_calls %}<|START_ACTION|>[{% endif %}{% for c")
        + '{{ "," if not loop.first }}\n    {"tool_call_id": "{{ loop.index0 }}", "tool_name": '
        '"{{ c.function.name }}", "parameters": {{ c.function.arguments | tojson }}}'
        + END.replace(
            "{% endfor %}", "{% endfor %}{% if m.tool_calls %} ]<|END_ACTION|>{% endif %}", 1
        ),
        '<|START_ACTION|>[\n    {"tool_call_id": "0", "tool_name": "f", "parameters": {"n": 1}} ]'
        "<|END_ACTION|>",
    ),
}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"n": {"type": "integer"}},
    "required": ["n"],
    "additionalProperties": False,
}


@pytest.mark.parametrize("family", SPELLINGS)
def test_asked_calls_have_the_white_space_of_the_template(family: str) -> None:
    """The format's own spelling is another, and is read all the same where calls are free."""
    template, spelled = SPELLINGS[family]
    tokenizer = family_tokenizer(family)
    tokenizer.chat_template = template
    chat = ChatRenderer(tokenizer)
    assert chat.format.calls is not None
    assert chat.format.calls.name == family
    calling = chat.calling([FunctionTool("f", SCHEMA)])
    end_id: Any = tokenizer.eos_token_id
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (end_id,))

    def passes(choice: str, text: str) -> bool:
        ids = tokenizer.encode(text, add_special_tokens=False)
        try:
            return compiler.compile(calling.grammar(choice)).matcher(ids).is_accepting
        except GrammarRejected:
            return False

    own = chat.format.write_calls([WrittenCall("", "f", '{"n": 1}')])
    assert passes("f", spelled)
    assert not passes("f", own)
    assert passes("auto", spelled)
    assert passes("auto", own)


def test_asked_calls_have_the_order_of_the_template() -> None:
    """A template that writes arguments before the name: so do calls that are asked for."""
    turned = '{"arguments": {{ c.function.arguments | tojson }}, "name": "{{ c.function.name }}"}'
    tokenizer = family_tokenizer("qwen2.5")
    tokenizer.chat_template = f"{TURN}<tool_call>\n{turned}\n</tool_call>{END}"
    chat = ChatRenderer(tokenizer)
    assert chat.format.name == "hermes/none"
    assert not chat.refusal
    spelled = '<tool_call>\n{"arguments": {"n": 1}, "name": "f"}\n</tool_call>'
    end_id: Any = tokenizer.eos_token_id
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (end_id,))
    ids = tokenizer.encode(spelled, add_special_tokens=False)
    lists = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}
    for schema, is_turned in ((SCHEMA, True), ({"properties": {"set": lists}}, False)):
        calling = chat.calling([FunctionTool("f", schema)])
        for choice in ("required", "f", "auto"):
            grammar = compiler.compile(calling.grammar(choice))
            if is_turned:
                assert grammar.matcher(ids).is_accepting
                continue
            # Lists are followed by the schema of a tool, whose name comes first then.
            with pytest.raises(GrammarRejected):
                grammar.matcher(ids[: len(ids) // 2])


def test_what_differs_in_more_than_white_space_leaves_a_format_as_it_is() -> None:
    """Other texts, and answers that differ among themselves."""
    calls = [{"id": "", "function": {"name": "f", "arguments": {"n": 1}}}]
    hermes = CALL_FORMATS["hermes"]
    body = '{"name": "f", "arguments": {"n": 1}}'
    one, other = f"<tool_call>{body}</tool_call>", f"<tool_call>\n{body}</tool_call>"
    changed = respelled(hermes, [(calls, f"</think>\n{one}\n")])
    assert (changed.call_open, changed.call_close) == ("<tool_call>", "</tool_call>")
    for answers in ([f"<call>{body}</call>"], [one, other], [one.replace(": 1", ":1")]):
        assert respelled(hermes, [(calls, answer) for answer in answers]) is hermes
