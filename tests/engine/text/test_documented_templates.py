"""Families whose template no package carries: written here, by what is documented of their form."""

from __future__ import annotations

import json
from typing import Any

import pytest
from models.made_chats import ASKED, WEATHER, prompt_of, tokenizer_of, two_turns

from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.text.chat_prompt import ChatRenderer

# A turn of calls ends in the mark of results, and the answer goes on behind the last of them;
# results have the name of their function, without which the template fails.
FUNCTION_GEMMA = """
{%- set ns = namespace(last='') %}{% for m in messages %}{% if m.role == 'tool' %}
{%- if ns.last == 'tool' %}<start_function_response>{% endif -%}
response:{{ m['name'] if 'name' in m else raise_exception('a result has a name') }}{value:<escape>
{{- m.content }}<escape>}<end_function_response>
{%- else %}{% if ns.last != 'tool' or m.role != 'assistant' %}<start_of_turn>
{{- 'model' if m.role == 'assistant' else m.role }}
{% endif %}{{ m.content or '' }}{% for c in m.tool_calls or [] %}<start_function_call>call:
{{- c.function.name }}{{ '{' }}{% for k, v in c.function.arguments | dictsort %}{{ k }}:
{%- if v is string %}<escape>{{ v }}<escape>{% else %}{{ v | tojson }}{% endif %}
{{- ',' if not loop.last }}{% endfor %}}<end_function_call>{% endfor %}
{%- if m.tool_calls %}<start_function_response>{% else %}<end_of_turn>
{% endif %}{% endif %}{% set ns.last = m.role %}{% endfor %}
{%- if add_generation_prompt and ns.last != 'tool' %}<start_of_turn>model
{% endif %}"""
# A thought before the calls, a line each in a fenced block, no blank between arguments.
MINICPM_4 = """
{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.tool_calls %}<|thought_start|>
{{ m.reasoning_content or 'I call.' }}
<|thought_end|>
<|tool_call_start|>
```python
{% for c in m.tool_calls %}{{ c.function.name }}({% for k, v in c.function.arguments.items() %}
{{- k }}={{ v | tojson if v is string else v }}{{ ',' if not loop.last }}{% endfor %})
{% endfor %}```
<|tool_call_end|>
{% endif %}{{ m.content or '' }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
STEP_3 = """
{%- for m in messages %}<|{{ m.role }}|>{{ m.content or '' }}{% if m.tool_calls %}
{{- '<｜tool_calls_begin｜>\n' }}{% for c in m.tool_calls %}
{{- '<｜tool_call_begin｜>function<｜tool_sep｜>' }}<steptml:invoke name="{{ c.function.name }}
{{- '">\n' }}
{%- for k, v in c.function.arguments.items() %}<steptml:parameter name="{{ k }}">
{{- v if v is string else v | tojson }}{{ '</steptml:parameter>\n' }}{% endfor %}
{{- '</steptml:invoke><｜tool_call_end｜>\n' }}{% endfor %}<｜tool_calls_end｜>{% endif %}<|EOT|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|><think>
{% endif %}"""
# What the call of the test is in each, typed by hand.
FAMILIES = {
    "functiongemma/none": (
        FUNCTION_GEMMA,
        "<start_of_turn> <end_of_turn> <start_function_call> <end_function_call>"
        " <start_function_response> <end_function_response> <escape>",
        "<start_function_call>call:get_weather{city:<escape>Oslo<escape>,days:2}<end_function_call>",
    ),
    "minicpm-4/minicpm-4": (
        MINICPM_4,
        "<|im_start|> <|im_end|> <|thought_start|> <|thought_end|> <|tool_call_start|>"
        " <|tool_call_end|>",
        '<|tool_call_start|>\n```python\nget_weather(city="Oslo",days=2)\n```\n<|tool_call_end|>',
    ),
    "step-3/think-in-prompt": (
        STEP_3,
        "<think> </think> <｜tool_calls_begin｜> <｜tool_calls_end｜> <｜tool_call_begin｜>"
        " <｜tool_call_end｜> <｜tool_sep｜> <|EOT|>",
        "<｜tool_calls_begin｜>\n<｜tool_call_begin｜>function<｜tool_sep｜>"
        '<steptml:invoke name="get_weather">\n'
        '<steptml:parameter name="city">Oslo</steptml:parameter>\n'
        '<steptml:parameter name="days">2</steptml:parameter>\n'
        "</steptml:invoke><｜tool_call_end｜>\n<｜tool_calls_end｜>",
    ),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_documented_form_is_known_and_written(name: str) -> None:
    """The template is told by what it renders; calls are asked for and read as it has them."""
    template, tokens, written = FAMILIES[name]
    tokenizer = tokenizer_of(template, *tokens.split())
    chat = ChatRenderer(tokenizer)
    assert (chat.format.name, chat.refusal) == (name, "")
    assert chat.choice.is_parallel
    prompt = prompt_of(chat, two_turns())
    places = [
        prompt.index(words)
        for words in ("Oslo and Bonn?", "It snows in Oslo", "It rains in Bonn", "Rome", "Sunny in")
    ]
    assert places == sorted(places)
    assert written.partition("</steptml:invoke>")[0].partition(")\n")[0] in prompt

    calling = chat.calling(tools_of([WEATHER]))
    assert chat.choice.written is not None
    arguments = json.dumps({"city": "Oslo", "days": 2})
    assert chat.choice.written.write([WrittenCall("", "get_weather", arguments)]) == written
    rule = chat.render([ASKED], [WEATHER], calling).reasoning()
    thought = "</think>" if rule.starts_inside else ""
    end_id: Any = tokenizer.eos_token_id
    compiler = GrammarCompiler(tokenizer, len(tokenizer), (end_id,))
    ids = tokenizer.encode(thought + written, add_special_tokens=False)
    for choice in ("auto", "required", "get_weather"):
        grammar = compiler.compile(calling.grammar(choice, reasoning=rule))
        assert grammar.matcher(ids).is_accepting
    reader = MessageReader(
        chat.format, {"get_weather": {}}, starts_in_reasoning=rule.starts_inside, call_id=str
    )
    reader.push(thought + written)
    reader.finish()
    [call] = reader.message.complete_calls
    assert json.loads(call.arguments) == {"city": "Oslo", "days": 2}


def test_results_have_the_name_of_their_call() -> None:
    """Clients of today leave it out; one that gives it is believed."""
    chat = ChatRenderer(tokenizer_of(FUNCTION_GEMMA, *FAMILIES["functiongemma/none"][1].split()))
    turns = two_turns()
    assert "response:get_weather{value:<escape>It snows" in prompt_of(chat, turns)
    turns[2]["name"] = "get_clouds"
    assert "response:get_clouds{value:<escape>It snows" in prompt_of(chat, turns)


# As templates of models that see images too write each part of a message.
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for p in m.content %}"
    "{% if p.type == 'text' %}{{ p.text }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_template_that_loops_over_parts_gets_them() -> None:
    """A text would be lost on it, letter by letter; a message that is continued as well."""
    chat = ChatRenderer(tokenizer_of(PARTS, "<|im_start|>", "<|im_end|>"))
    turns = [{"role": "system", "content": "Be brief."}, *two_turns()]
    prompt = prompt_of(chat, turns)
    for words in ("Be brief.", "Oslo and Bonn?", "It snows", '"city": "Rome"', "Sunny in Rome"):
        assert words in prompt
    begun = [ASKED, {"role": "assistant", "content": "It is"}]
    assert chat.render(begun, continue_final_message=True).text.endswith("assistant\nIt is")


def test_template_without_the_words_of_the_user_is_none() -> None:
    """Each question would have the same answer, and nobody would know why."""
    for template in ("", "hello", "{% for m in messages %}<|{{ m.role }}|>{% endfor %}"):
        with pytest.raises(RequestRejected, match="chat_template: it renders no word"):
            ChatRenderer(tokenizer_of(template))


# In the form of Nemotron Nano 8B: turns have to alternate, calls leave no place for words.
ALTERNATING = """
{%- if tools %}<AVAILABLE_TOOLS>{{ tools | tojson }}</AVAILABLE_TOOLS>{% endif %}
{%- for m in messages %}{% if (m.role in ['user', 'tool']) != (loop.index0 % 2 == 0) %}
{{- raise_exception('roles must alternate') }}{% endif %}<|head|>
{%- if m.role == 'tool' %}user:<TOOL_RESPONSE>[{{ m.content }}]</TOOL_RESPONSE>
{%- elif m.tool_calls %}assistant:<TOOLCALL>[{% for c in m.tool_calls %}{"name": "
{{- c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
{%- if not loop.last %}, {% endif %}{% endfor %}]</TOOLCALL>
{%- else %}{{ m.role }}:{{ m.content }}{% endif %}<|eot|>{% endfor %}
{%- if add_generation_prompt %}<|head|>assistant:{% endif %}"""
# In that of Nemotron Nano 12B v2: of an answer that stands last the words alone are rendered.
WORDS_LAST = """
{%- if tools %}<AVAILABLE_TOOLS>{{ tools | tojson }}</AVAILABLE_TOOLS>{% endif %}
{%- for m in messages %}<|head|>{{ m.role }}:{{ m.content or '' }}
{%- if m.tool_calls and not loop.last %}<TOOLCALL>[{% for c in m.tool_calls %}{"name": "
{{- c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}
{%- if not loop.last %}, {% endif %}{% endfor %}]</TOOLCALL>{% endif %}<|eot|>{% endfor %}
{%- if add_generation_prompt %}<|head|>assistant:{% endif %}"""


@pytest.mark.parametrize(
    ("template", "is_parallel"), [(ALTERNATING, False), (WORDS_LAST, True)], ids=["strict", "last"]
)
def test_calls_find_a_place_in_templates_that_have_few(template: str, *, is_parallel: bool) -> None:
    """Results that may not follow each other come one by one, words before calls with them."""
    chat = ChatRenderer(tokenizer_of(template, "<|head|>", "<|eot|>"))
    assert (chat.format.name, chat.refusal) == ("nemotron-v2/none", "")
    assert chat.choice.is_parallel is is_parallel
    prompt = prompt_of(chat, two_turns())
    assert '"city": "Bonn"' in prompt
    again = '<TOOLCALL>[{"name": "get_weather", "arguments": {"city": "Rome", "days": 4}}]'
    assert f"<|head|>assistant:I look again.{again}</TOOLCALL><|eot|>" in prompt
    results = ("It snows in Oslo", "It rains in Bonn", "I look again.", "Sunny in Rome")
    assert sorted(results, key=prompt.index) == list(results)


# In the form of Command R: the kind of an object is told by that of its further values.
KINDS = (
    "{% macro kind(s) %}{% if s.type == 'object' %}Dict[str, {{ kind(s.additionalProperties) }}]"
    "{% elif s.type == 'array' %}List[{{ kind(s['items']) }}]{% elif s.type %}{{ s.type }}"
    "{% else %}Any{% endif %}{% endmacro %}{% for t in tools or [] %}{{ t.function.name }}("
    "{% for k, v in t.function.parameters.properties.items() %}{{ k }}: {{ kind(v) }} "
    "{% endfor %}){% endfor %}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}"
)


def test_objects_of_any_kind_reach_templates_that_ask_for_it() -> None:
    """Schemas of clients rarely say it, in lists or outside."""
    chat = ChatRenderer(tokenizer_of(KINDS))
    properties = {"x": {"type": "object"}, "y": {"type": "array", "items": {"type": "object"}}}
    function = {"name": "find", "parameters": {"type": "object", "properties": properties}}
    turns, tools = [ASKED], [{"type": "function", "function": function}]
    text = chat._rendered(turns, tools, {}, True)
    assert "find(x: Dict[str, Any] y: List[Dict[str, Any]] )" in text


# As models that judge an exchange render it, or take one question.
JUDGE = """
{%- set ns = namespace(asked='', told='') %}{% for m in messages %}
{%- if m.role == 'user' %}{% set ns.asked = m.content %}{% endif %}
{%- if m.role == 'assistant' %}{% set ns.told = m.content %}{% endif %}{% endfor -%}
Judge this: <human>{{ ns.asked }}</human><ai>{{ ns.told }}</ai>"""
QUESTIONS = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"


@pytest.mark.parametrize("template", [JUDGE, QUESTIONS], ids=["judge", "questions alone"])
def test_template_that_leaves_earlier_turns_out_refuses_them(template: str) -> None:
    """An answer to half of a conversation looks like any other."""
    chat = ChatRenderer(tokenizer_of(template))
    answered = [ASKED, {"role": "assistant", "content": "It snows."}]
    assert str(ASKED["content"]) in chat.render([ASKED]).text
    assert str(ASKED["content"]) in chat.render(answered).text
    with pytest.raises(RequestRejected, match="leaves earlier ones out"):
        chat.render([*answered, ASKED])
