"""Chat formats of models: chosen by what their templates render, proved, and rendered by.

Templates are those of packages, or written here in the form of a family where that is said.
"""

from __future__ import annotations

import json

import pytest
from models.made_chats import ASKED, BARE, WEATHER, prompt_of, tokenizer_of, two_turns
from models.packed_tokenizers import packed_templates, packed_tokenizer

from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.offline.offline_request import conversation_of
from tokenbus.engine.text.chat_prompt import ChatRenderer
from tokenbus.engine.text.templates import bounded_sandbox
from tokenbus.engine.text.templates.chat_template import ChatTemplate, TemplateRefused
from tokenbus.engine.text.templates.chat_turns import ChatTurns

# Written here, each in the form of its family.
LAST_ASSISTANT = "{% if add_generation_prompt %}<|assistant|>{% endif %}"
TURN = "{{ '<|' ~ m.role ~ '|>' ~ m.content ~ '<|end|>' }}"
TEMPLATES = {
    # No system role: it refuses one, as Gemma 2 does.
    "no-system": "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}" + TURN + "{% endfor %}"
    + LAST_ASSISTANT,
    # Calls one by one and arguments as objects, as Llama 3.1 has them.
    "single": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('single tool-calls only') }}{% endif %}"
    "{% set f = m.tool_calls[0].function %}<|assistant|>"
    "{{ '{\"name\": \"' ~ f.name ~ '\", \"parameters\": ' ~ (f.arguments | tojson) ~ '}' }}<|end|>"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # Arguments as text, content null beside calls, and no tools, as DeepSeek R1 has them.
    "null-content": "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}"
    "<|assistant|><｜tool▁calls▁begin｜>{% for c in m.tool_calls %}"
    "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{{ c.function.name + '\\n```json\\n' +"
    " c.function.arguments + '\\n```' }}<｜tool▁call▁end｜>{% endfor %}<｜tool▁calls▁end｜><|end|>"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # The first of several calls alone, and results by the role of the user, as gpt-oss has them.
    "first-call": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}{% set f = m.tool_calls[0].function %}<|assistant|><tool_call>\n"
    "{{ {'name': f.name, 'arguments': f.arguments} | tojson }}\n</tool_call><|end|>"
    "{% else %}" + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # Content alone: calls and results vanish, as in Phi 3.5.
    "content-alone": "{% for m in messages %}{% if m.role in ('system', 'user', 'assistant') %}"
    + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # Descriptions are taken for granted, as in Command R+.
    "described": "{% for t in tools or [] %}{{ t.function.name + ': ' + t.function.description }}"
    "{% for n, p in t.function.parameters.properties.items() %}{{ n + p.type + p.description }}"
    "{% endfor %}{% endfor %}{% for m in messages %}{% if m.tool_calls %}<|assistant|>"
    "{% for c in m.tool_calls %}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>"
    "{% endfor %}<|end|>{% else %}" + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # Text beside later calls is lost, as in DeepSeek V3 and R1.
    "forgetful": "{% if tools %}{{ tools | tojson }}{% endif %}"
    "{% set ns = namespace(begun=false) %}{% for m in messages %}{% if m.tool_calls %}"
    "<|assistant|>{% if not ns.begun %}{{ m.content }}{% set ns.begun = true %}{% endif %}"
    "{% for c in m.tool_calls %}<tool_call>\n"
    "{{ {'name': c.function.name, 'arguments': c.function.arguments} | tojson }}\n</tool_call>"
    "{% endfor %}<|end|>{% else %}" + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # Turns of words take turns, and calls are shown in Python and rendered as no Python is, as in
    # vLLM's for Gemma 3.
    "alternating": "{% for m in messages if m.role != 'tool' and not m.tool_calls %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}"
    "{% endif %}{% endfor %}{% if tools %}{{ tools | tojson }}[func_name(key=value...)]{% endif %}"
    "{% for m in messages %}{% if m.tool_calls %}<|assistant|>[{% for c in m.tool_calls %}"
    "{{ c.function.name }}({% for k, v in c.function.arguments.items() %}{{ k ~ '=' ~ v }}"
    "{% endfor %}){% endfor %}]<|end|>{% else %}" + TURN + "{% endif %}{% endfor %}"
    + LAST_ASSISTANT,
    # Ids of nine characters at least, as in vLLM's for Mistral.
    "long-ids": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}"
    "{% if m.tool_calls %}<|assistant|>[TOOL_CALLS] [{% for c in m.tool_calls %}"
    "{% if c.id | length < 9 %}{{ raise_exception('too short') }}{% endif %}"
    '{{ (c.function | tojson)[:-1] }}, "id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}'
    "{% endfor %}]<|end|>{% else %}" + TURN + "{% endif %}{% endfor %}" + LAST_ASSISTANT,
    # A form that no family has.
    "unknown": "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}" + TURN
    + "{% for c in m.tool_calls or [] %}#!{{ c.function.name }}!{{ c.function.arguments }}!#"
    "{% endfor %}{% endfor %}" + LAST_ASSISTANT,
}  # fmt: skip
EXPECTED = {
    "no-system": "hermes",
    "single": "llama-3",
    "null-content": "deepseek-v3",
    "first-call": "hermes",
    "content-alone": "hermes",
    "described": "hermes",
    "forgetful": "hermes",
    "alternating": "llama-4",
    "long-ids": "mistral",
}


@pytest.mark.parametrize("name", EXPECTED)
def test_nothing_of_a_conversation_is_lost_whatever_the_template_leaves_out(name: str) -> None:
    """Tools, calls, results and texts are all in the prompt, in order, and calls are read back."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES[name]))
    assert not chat.refusal
    assert chat.format.calls is not None
    assert chat.format.calls.name == EXPECTED[name]
    text = prompt_of(chat, two_turns())
    places = [
        text.index(words)
        for words in ("get_weather", ASKED["content"], 'Oslo"', "It snows", "It rains",
                      "I look again.", 'Rome"', "Sunny in Rome")
    ]  # fmt: skip
    assert places == sorted(places)
    assert 'Bonn"' in text
    assert text.endswith("<|assistant|>")
    begins, ends = text.index('Oslo"'), text.index("It snows")
    written = text[text.rindex("<|assistant|>", 0, begins) + len("<|assistant|>") : ends]
    reader = MessageReader(chat.format, {"get_weather": {}}, starts_in_reasoning=False, call_id=str)
    reader.push(written.partition("<|end|>")[0])
    reader.finish()
    read = json.loads(reader.message.complete_calls[0].arguments)
    assert read == {"city": "Oslo", "days": 2}


@pytest.mark.parametrize("lacking", ["calls", "results", "both", "neither"])
def test_results_have_the_ids_of_their_calls_whoever_left_them_out(lacking: str) -> None:
    """They take the calls in order, also where a later turn has the ids of an earlier one."""
    turns = [*two_turns()[:4], *two_turns()[1:4]]
    for turn in turns:
        if "tool_calls" in turn and lacking in ("calls", "both"):
            turn["tool_calls"] = [{**each, "id": None} for each in turn["tool_calls"]]
        if turn["role"] == "tool" and lacking in ("results", "both"):
            del turn["tool_call_id"]
    chat = ChatRenderer(tokenizer_of(TEMPLATES["null-content"]))
    rendered = ChatTurns(chat.traits, chat.choice).of(conversation_of(turns)[0])
    for part in (rendered[1:4], rendered[4:7]):
        called = [each["id"] for each in part[0]["tool_calls"]]
        assert called == [turn["tool_call_id"] for turn in part[1:]]
        assert len({*called}) == 2
    if lacking == "neither":
        assert called == ["call_one", "call_two"]


def test_unknown_way_of_writing_calls_refuses_tools_and_nothing_else() -> None:
    """What is not read back is told in a sentence; conversations without tools go on."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES["unknown"]))
    assert "no known format" in chat.refusal
    assert chat.told()["tools_refused"] == chat.refusal
    with pytest.raises(RequestRejected, match=r"tools: .*no known format") as refused:
        chat.calling(tools_of([WEATHER]))
    assert refused.value.field == "tools"
    assert chat.render([ASKED]).text == f"<|user|>{ASKED['content']}<|end|><|assistant|>"
    assert "Oslo" in chat.render(two_turns()).text


def test_named_format_is_written_where_the_template_has_another() -> None:
    """With `--tool-format` calls stand in the text of their message, as the model is told."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES["unknown"]), tool_format="seed-oss")
    assert not chat.refusal
    text = prompt_of(chat, two_turns())
    assert "<seed:tool_call>\n<function=get_weather>\n<parameter=city>Oslo" in text
    assert "#!" not in text
    with pytest.raises(RequestRejected, match="tool_format: nonesuch is not among"):
        ChatRenderer(tokenizer_of(TEMPLATES["unknown"]), tool_format="nonesuch")
    with pytest.raises(RequestRejected, match="chat_template"):
        ChatRenderer(tokenizer_of(None))
    with pytest.raises(RequestRejected, match="chat_template: line 1"):
        ChatRenderer(tokenizer_of("{% if %}"))


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_of_a_history_stay_where_no_format_is_wanted(name: str) -> None:
    """With `--tool-format none` they stand as the template has them, or as JSON on own lines."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES[name]), tool_format="none")
    assert chat.refusal == "the tool format none has no calls"
    text = chat.render(two_turns()).text
    places = [
        text.index(words)
        for words in ("Oslo", "It snows", "It rains", "I look again.", "Rome", "Sunny in Rome")
    ]
    assert places == sorted(places)
    assert "Bonn" in text
    if name in ("no-system", "content-alone"):
        calls = text.split("I look again.")[1].partition("<|end|>")[0]
        [written] = [json.loads(line) for line in calls.strip().splitlines()]
        assert written["name"] == "get_weather"
        assert json.loads(written["arguments"]) == {"city": "Rome", "days": 4}


@pytest.mark.parametrize("name", ["content-alone", "no-system"])
def test_results_stand_in_the_order_of_their_calls(name: str) -> None:
    """Results that came in another order are told apart where a template renders no ids."""
    chat, turns = ChatRenderer(tokenizer_of(TEMPLATES[name])), two_turns()
    turns[2], turns[3] = turns[3], turns[2]
    assert prompt_of(chat, turns) == prompt_of(chat, two_turns())


def test_missing_descriptions_are_filled_in_where_a_template_asks_for_them() -> None:
    """A tool without description is rendered, and one with it as it came."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES["described"]))
    text = chat.render([ASKED], [BARE], chat.calling(tools_of([BARE]))).text
    assert "now: tzstring" in text


def test_history_with_calls_needs_no_tools_of_its_own() -> None:
    """A template that counts on tools where there are calls, as Hermes 3 has, gets none of them."""
    counted = "{{ 'Tools:' }}{% for t in tools %}{{ t | tojson }}{% endfor %}"
    template = counted + TEMPLATES["first-call"].partition("{% endif %}")[2]
    chat = ChatRenderer(tokenizer_of(template))
    assert "It snows in Oslo" in prompt_of(chat, two_turns())
    assert chat.render(two_turns()).text.startswith("Tools:<|user|>")


def test_system_and_developer_messages_reach_every_model() -> None:
    """As the template knows them: the role developer is system's where it has no meaning."""
    orders = [{"role": "developer", "content": "Be brief."}, ASKED]
    plain = ChatRenderer(tokenizer_of(TEMPLATES["content-alone"])).render(orders).text
    assert plain.startswith("<|system|>Be brief.<|end|><|user|>")
    folded = ChatRenderer(tokenizer_of(TEMPLATES["no-system"])).render(orders).text
    assert folded.startswith(f"<|user|>Be brief.\n\n{ASKED['content']}<|end|>")
    late = [ASKED, {"role": "assistant", "content": "Hm."}, orders[0], ASKED]
    folded = ChatRenderer(tokenizer_of(TEMPLATES["no-system"])).render(late).text
    assert f"<|user|>Be brief.\n\n{ASKED['content']}<|end|>" in folded


def test_rules_alone_reach_a_template_that_puts_them_into_the_last_user_turn() -> None:
    """A conversation of system messages alone is a user's where the template shows no other."""
    kept = (
        "{% for m in messages %}{% if m.role == 'user' %}<|user|>{% if loop.last and"
        " messages[0].role == 'system' %}{{ messages[0].content + ' ' }}{% endif %}"
        "{{ m.content }}{% endif %}{% endfor %}"
    )
    rules = [{"role": "system", "content": "Be brief."}]
    chat = ChatRenderer(tokenizer_of(kept))
    assert chat.render(rules).text == "<|user|>Be brief."
    assert chat.render([*rules, ASKED]).text == f"<|user|>Be brief. {ASKED['content']}"
    plain = ChatRenderer(tokenizer_of(TEMPLATES["content-alone"])).render(rules).text
    assert plain == "<|system|>Be brief.<|end|><|assistant|>"


def test_role_that_the_template_leaves_out_is_refused() -> None:
    """A message of a role that is not rendered would be lost in silence."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES["content-alone"]))
    for role in ("human", "User", "ai"):
        with pytest.raises(RequestRejected, match=f"renders no role '{role}'") as refused:
            chat.render([ASKED, {"role": role, "content": "Hello"}, ASKED])
        assert refused.value.field == "messages.1.role"
    printed = ChatRenderer(tokenizer_of(TEMPLATES["described"]))
    assert (
        "<|observation|>7<|end|>"
        in printed.render([ASKED, {"role": "observation", "content": "7"}]).text
    )


def test_last_message_is_continued_and_reasoning_is_known_to_be_open() -> None:
    """The prompt ends where the message ends; template arguments reach the template."""
    template = (
        "{% for m in messages %}" + TURN + "{% endfor %}{% if add_generation_prompt %}"
        "<|assistant|>{% if enable_thinking is not defined or enable_thinking %}<think>\n"
        "{% else %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    chat = ChatRenderer(tokenizer_of(template))
    assert chat.format.reasoning is not None
    opened = chat.render([ASKED])
    assert opened.starts_in_reasoning
    closed = chat.render([ASKED], chat_template_kwargs={"enable_thinking": False})
    assert (closed.starts_in_reasoning, closed.may_reason) == (False, False)
    begun = [ASKED, {"role": "assistant", "content": "The answer is "}]
    continued = chat.render(begun, continue_final_message=True)
    assert continued.text.endswith("<|assistant|>The answer is ")
    assert not continued.starts_in_reasoning
    begun[1]["content"] = "<think>\nIt may"
    assert chat.render(begun, continue_final_message=True).starts_in_reasoning
    assert not chat.render([ASKED], add_generation_prompt=False).text.endswith("<think>\n")
    with pytest.raises(RequestRejected, match="continue_final_message"):
        chat.render([ASKED], continue_final_message=True)
    with pytest.raises(RequestRejected, match="continue_final_message"):
        chat.render(begun, continue_final_message=True, add_generation_prompt=True)


def test_words_behind_an_opened_thought_are_continued_inside_of_it() -> None:
    """A template may open the block before any last answer; calls as text are not gone on with."""
    opened = (
        "{% for m in messages %}{% if m.role == 'assistant' %}<|assistant|><think>\n{{ m.content }}"
        "{% if not loop.last %}<|end|>{% endif %}{% else %}" + TURN + "{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
    )
    chat = ChatRenderer(tokenizer_of(opened))
    begun = [ASKED, {"role": "assistant", "content": "It may"}]
    assert chat.render(begun, continue_final_message=True).starts_in_reasoning
    begun[1]["content"] = "It does.\n</think>\n\nThe"
    assert not chat.render(begun, continue_final_message=True).starts_in_reasoning
    chat = ChatRenderer(tokenizer_of(TEMPLATES["content-alone"]))
    with pytest.raises(RequestRejected, match="without calls"):
        chat.render(two_turns()[:2], continue_final_message=True)


def test_arguments_of_a_template_take_no_place_of_its_own() -> None:
    """Whatever they are called, the conversation is rendered and no error of Python's is told."""
    chat = ChatRenderer(tokenizer_of(TEMPLATES["content-alone"]))
    plain = chat.render([ASKED]).text
    for name in ("self", "messages", "tools", "documents", "add_generation_prompt"):
        assert chat.render([ASKED], chat_template_kwargs={name: []}).text == plain


def test_template_that_refuses_does_so_in_a_sentence() -> None:
    """Whatever a template raises is a refusal of the messages."""
    for body in ("{{ raise_exception('not\nlike this') }}", "{{ messages[9].x.y }}", "{{ 1 / 0 }}"):
        chat = ChatRenderer(tokenizer_of(body))
        with pytest.raises(RequestRejected, match=r"chat template refuses them: .") as refused:
            chat.render([ASKED])
        assert refused.value.field == "messages"
        assert "\n" not in str(refused.value)


def test_templates_reach_nothing_but_their_conversation() -> None:
    """The sandbox keeps what templates are given apart from the interpreter."""
    for body in (
        "{{ messages.__class__.__mro__ }}",
        "{{ ''.__class__ }}{{ ''.format.__globals__['os'] }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
    ):
        chat = ChatRenderer(tokenizer_of("{{ messages[0].content }}" + body))
        try:
            assert "module" not in (text := chat.render([ASKED]).text)
            assert "object" not in text
        except RequestRejected:
            continue
    given = [dict(ASKED)]
    growing = (
        "{% set _ = messages.append({'role': 'x'}) %}{{ messages[0].content, messages | length }}"
    )
    assert ChatRenderer(tokenizer_of(growing)).render(given).text.endswith(", 2)")
    assert given == [ASKED]


_ENDLESS = {
    "loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "nothing": "{% for a in range(99999) %}{% for b in range(99999) if false %}{% endfor %}"
    "{% endfor %}",
}
_UNBOUNDED = {
    "joined": "{% set ns = namespace(a='xx') %}"
    "{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}",
    "added": "{% set ns = namespace(a='xx') %}"
    "{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}",
    "extended": "{% set l = [1] %}{% for i in range(60) %}{% set _ = l.extend(l) %}{% endfor %}",
    "multiplied": "{{ messages[0].content * 10000000000 }}",
    "list": "{{ messages * 10000000000 }}",
    "power": "{{ (messages | length + 8) ** 999999999 }}",
    "filter": "{{ messages[0].content | center(20000000000) }}",
    "indent": "{{ ('a\\n' * 100000) | indent(100000) }}",
    "method": "{{ messages[0].content.ljust(20000000000) }}",
    "replace": "{% set a = 'x' * 100000 %}{{ a.replace('x', a) }}",
    "join": "{% set a = 'x' * 100000 %}{{ a.join(range(99999) | list) }}",
    "percent": "{{ '%20000000000d' % 1 }}{{ '%*d' % (20000000000, 1) }}",
    "format": "{{ '%20000000000d' | format(1) }}",
    "braces": "{{ '{:20000000000}'.format(1) }}",
    "computed": "{{ '{:{}}'.format(1, 20000000000) }}",
}


@pytest.mark.parametrize("name", _UNBOUNDED)
def test_template_makes_nothing_without_bounds(name: str) -> None:
    """A text or a list that would fill the memory is a refusal before it is made."""
    with pytest.raises(TemplateRefused, match=r"without bounds|width of millions"):
        ChatTemplate("{{ messages[0].content }}" + _UNBOUNDED[name], {}).render([ASKED])


@pytest.mark.parametrize("name", _ENDLESS)
def test_template_that_renders_for_ever_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once if it does so for any question, else where it is asked that one."""
    monkeypatch.setattr(bounded_sandbox, "_MAX_RENDER_S", 0.2)
    with pytest.raises(TemplateRefused, match="renders for more than"):
        ChatTemplate(_ENDLESS[name], {})
    trap = (
        "{% if messages | length > 1 %}" + _ENDLESS[name] + "{% endif %}{{ messages[0].content }}"
    )
    template = ChatTemplate(trap, {})
    with pytest.raises(TemplateRefused, match="renders for more than"):
        template.render([ASKED, ASKED])
    assert template.render([ASKED]) == ASKED["content"]


@pytest.mark.parametrize(
    "body",
    ["{% if 1 %}" * 3000 + "{% endif %}" * 3000, "{% for a in [1] %}" * 30 + "{% endfor %}" * 30],
)
def test_template_too_deep_to_compile_is_refused(body: str) -> None:
    """Whether jinja2 gives up or Python does."""
    with pytest.raises(TemplateRefused, match="it cannot be compiled"):
        ChatTemplate(body, {})


@pytest.mark.processes
def test_real_qwen3_tokenizer_renders_and_reads_back() -> None:
    """Its own template has tools, calls and reasoning; all is told apart without a setting."""
    chat = ChatRenderer(packed_tokenizer("qwen3"))
    assert chat.format.name == "hermes/think"
    assert (chat.choice.is_parallel, chat.choice.has_text_before) == (True, True)
    text = prompt_of(chat, two_turns())
    assert text.count('<tool_call>\n{"name": "get_weather"') == 3
    assert text.endswith("<|im_start|>assistant\n")
    vocabulary = chat.tokens
    assert vocabulary.ids_in(("<tool_call>", "</think>")) == (151657, 151668)
    assert set(vocabulary.ids_in(chat.format.texts)) == set(chat.shown_ids)


# By the names of the files; `none` is refused in a sentence.
PUBLIC = {
    "Apertus-8B-Instruct": "apertus/apertus",
    "Apriel-1.6-15b-Thinker-fixed": "jamba/apriel",
    "Bielik-11B-v3.0-Instruct": "hermes/think-in-prompt",
    "ByteDance-Seed-OSS": "seed-oss/seed",
    "Cohere2MoE": "command-a/command-a",
    "CohereForAI-c4ai-command-r-plus-tool_use": "command-r/none",
    "CohereForAI-c4ai-command-r7b-12-2024-tool_use": "command-a/command-a",
    "GLM-4.6": "glm-4/think",
    "GLM-4.7-Flash": "glm-4/think",
    "GigaChat3-10B-A1.8B": "none/none",
    "GigaChat3.1-10B-A1.8B": "gigachat-3.1/none",
    "HuggingFaceTB-SmolLM3-3B": "hermes/think",
    "Kimi-K2-Instruct": "kimi-k2/none",
    "Kimi-K2-Thinking": "kimi-k2/kimi",
    "Kimi-K3": "none/none",
    "LFM2-8B-A1B": "none/none",
    "LFM2.5-8B-A1B": "lfm2/think",
    "LFM2.5-Instruct": "none/think",
    "MiMo-VL": "hermes/none",
    "MiniMax-M1": "minimax-m1/none",
    "MiniMax-M2": "minimax-m2/think-in-prompt",
    "MiniMax-M3": "none/minimax-m3",
    "Mistral-Small-3.2-24B-Instruct-2506": "mistral-call-id/none",
    "NVIDIA-Nemotron-3-Nano-30B-A3B-BF16": "qwen3-coder/think-in-prompt",
    "NVIDIA-Nemotron-Nano-v2": "nemotron-v2/think-in-prompt",
    "NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use": "hermes/none",
    "NousResearch-Hermes-3-Llama-3.1-8B-tool_use": "hermes/none",
    "Qwen-QwQ-32B": "hermes/think-in-prompt",
    "Qwen-Qwen2.5-7B-Instruct": "hermes/none",
    "Qwen-Qwen3-0.6B": "hermes/think",
    "Qwen3-Coder": "qwen3-coder/none",
    "Qwen3.5-4B": "qwen3-coder/think-in-prompt",
    "Reka-Edge": "hermes/think-in-prompt",
    "Spark2.5": "glm-4/think",
    "StepFun3.5-Flash": "qwen3-coder/think-in-prompt",
    "deepseek-ai-DeepSeek-R1-Distill-Llama-8B": "deepseek-v3/think-in-prompt",
    "deepseek-ai-DeepSeek-R1-Distill-Qwen-32B": "deepseek-v3/think-in-prompt",
    "deepseek-ai-DeepSeek-V3.1": "deepseek-v3.1/think-in-prompt",
    "deepseek-ai-DeepSeek-V3.2": "deepseek-v3.2/think-in-prompt",
    "deepseek-ai-DeepSeek-V4-Flash-0731": "deepseek-v4/think-in-prompt",
    "deepseek-ai-DeepSeek-V4": "deepseek-v4/think-in-prompt",
    "fireworks-ai-llama-3-firefunction-v2": "functools/none",
    "google-gemma-2-2b-it": "gemma-3/none",
    "google-gemma-4-31B-it-interleaved": "gemma-4/gemma-4",
    "google-gemma-4-31B-it": "gemma-4/gemma-4",
    "ibm-granite-granite-3.3-2B-Instruct": "granite-3/think",
    "ibm-granite-granite-4.0": "hermes/none",
    "ibm-granite-granite-4.1": "hermes/none",
    "inclusionai-ling-3.0-flash": "glm-4/think",
    "llama-cpp-deepseek-r1": "deepseek-v3/think-in-prompt",
    "llama-cpp-rwkv-world": "hermes/think-in-prompt",
    "meetkai-functionary-medium-v3.1": "functionary-v3.1/none",
    "meetkai-functionary-medium-v3.2": "functionary-v3.2/none",
    "meta-llama-Llama-3.1-8B-Instruct": "llama-3/none",
    "meta-llama-Llama-3.2-3B-Instruct": "llama-3/none",
    "meta-llama-Llama-3.3-70B-Instruct": "llama-3/none",
    "microsoft-Phi-3.5-mini-instruct": "hermes/none",
    "mistralai-Ministral-3-14B-Reasoning-2512": "mistral-args/mistral",
    "mistralai-Mistral-Nemo-Instruct-2407": "mistral/none",
    "moonshotai-Kimi-K2": "kimi-k2/none",
    "muse-glimmer": "none/none",
    "openai-gpt-oss-120b": "harmony/harmony",
    "openbmb-MiniCPM5-1B": "minicpm-5/think",
    "poolside-Laguna-S-2.1": "glm-4/think",
    "poolside-Laguna-XS-2.1": "glm-4/think",
    "poolside-Laguna-XS.2": "glm-4/think",
    "tencent-Hy3": "hunyuan-3/hunyuan-3",
    "unsloth-Apriel-1.5": "jamba/apriel-1.5",
    "unsloth-mistral-Devstral-Small-2507": "mistral-args/none",
    "upstage-Solar-Open-100B": "none/none",
}


@pytest.mark.slow
@pytest.mark.processes
def test_public_templates_are_known_and_lose_nothing() -> None:
    """Each template of a package gets its family's format, and every turn of a conversation."""
    templates = packed_templates()
    found = {name: ChatRenderer(tokenizer_of(templates[name])) for name in PUBLIC}
    assert {name: chat.format.name for name, chat in found.items()} == PUBLIC
    assert PUBLIC.keys() == templates.keys()
    for name, chat in found.items():
        assert bool(chat.refusal) is chat.format.name.startswith("none/")
        if chat.refusal:
            continue
        text = prompt_of(chat, two_turns())
        for words in ("get_weather", ASKED["content"], "Oslo", "Bonn", "Rome", "It snows",
                      "It rains", "I look again.", "Sunny in Rome"):  # fmt: skip
            assert words in text.split("get_weather", 1)[0] + text, (name, words)
