"""Real tokenizers of public models, from packages: prompts, streams and grammars over their tokens.

Templates are those of the packages, or of the archive of templates where a package has an older one
or none. The answers are those that are typed for the family.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import pytest
from golden_answers import TOOLS, Golden, golden_answers, joined, plain
from models.made_chats import ASKED, WEATHER, prompt_of, two_turns
from models.packed_tokenizers import packed_templates, packed_tokenizer

from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.calls.reasoning_rules import ReasoningRule
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.tools import FunctionTool, tools_of
from tokenbus.engine.text.chat_prompt import ChatRenderer
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import CompiledGrammar
    from tokenbus.engine.text.chat_prompt import ChatPrompt

pytestmark = [pytest.mark.processes, pytest.mark.each_value]


@dataclass(frozen=True)
class Model:
    """A tokenizer by the name of its package, its template, and what is to be found out."""

    package: str
    template: str | None
    family: str
    chat_format: str


MODELS = {
    "qwen3": Model("qwen3", None, "qwen3", "hermes/think"),
    "llama-3.1": Model("llama3_1", "meta-llama-Llama-3.1-8B-Instruct", "llama-3", "llama-3/none"),
    "gpt-oss": Model("gptoss", "openai-gpt-oss-120b", "gpt-oss", "harmony/harmony"),
    "deepseek-v3": Model("deepseek_v3", None, "deepseek-v3", "deepseek-v3/none"),
    "deepseek-v3.1": Model(
        "deepseek_v3", "deepseek-ai-DeepSeek-V3.1", "deepseek-v3.1", "deepseek-v3.1/think-in-prompt"
    ),
    "gemma-3": Model("gemma3", None, "gemma-3", "gemma-3/none"),
    "qwen2.5": Model("qwen2_5", None, "qwen2.5", "hermes/none"),
    "hermes-3": Model(
        "llama3_1", "NousResearch-Hermes-3-Llama-3.1-8B-tool_use", "hermes", "hermes/none"
    ),
    "command-r-plus": Model(
        "command_r_plus",
        "CohereForAI-c4ai-command-r-plus-tool_use",
        "command-r",
        "command-r/none",
    ),
    "internlm-2": Model("internlm2", None, "hermes", "hermes/none"),
    "gemma-2": Model("gemma2", "google-gemma-2-2b-it", "gemma-3", "gemma-3/none"),
    "mistral-nemo": Model(
        "mistral_nemo", "mistralai-Mistral-Nemo-Instruct-2407", "mistral", "mistral/none"
    ),
}
EACH = [pytest.param(name, marks=() if name == "qwen3" else pytest.mark.slow) for name in MODELS]
# What readers take and grammars steer away from, by the titles of typed answers.
READ_ALONE = (
    "cut", "not closed", "unicode", "arguments first", "arguments before", "arguments as text",
    "of another type", "by place", "two calls", "two blocks", "two thoughts", "behind", "JSON",
    "a list of two", "line breaks", "blanks", "parameters and type", "Python's spelling",
    "the mark is written too", "numbers as strings", "nested arguments", "do not tell",
)  # fmt: skip


packed = cache(packed_tokenizer)


def tokenizer_of(name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer of a model, shared by those that have it."""
    return packed(MODELS[name].package)


@cache
def chat_of(name: str) -> ChatRenderer:
    """Return the renderer of a model, with its template."""
    template = MODELS[name].template
    own = None if template is None else packed_templates()[template]
    return ChatRenderer(tokenizer_of(name), chat_template=own)


@cache
def compiler_of(package: str) -> GrammarCompiler:
    """Return the compiler of a tokenizer, whose vocabulary takes seconds to read."""
    tokenizer = packed(package)
    end_id: Any = tokenizer.eos_token_id
    return GrammarCompiler(tokenizer, len(tokenizer), (end_id,))


@cache
def grammar_of(name: str, choice: str, rule: ReasoningRule) -> CompiledGrammar:
    """Return a constraint to calls of the tools of the typed answers."""
    tools = [FunctionTool(tool, schema) for tool, schema in TOOLS.items()]
    spec = chat_of(name).calling(tools).grammar(choice, reasoning=rule)
    return compiler_of(MODELS[name].package).compile(spec)


def passes(name: str, text: str, choice: str, rule: ReasoningRule) -> bool:
    """Tell whether an answer passes a constraint, token by token, and may end there."""
    ids = tokenizer_of(name).encode(text, add_special_tokens=False)
    try:
        return grammar_of(name, choice, rule).matcher(ids).is_accepting
    except GrammarRejected:
        return False


def reader_of(chat: ChatRenderer, *, starts_in_reasoning: bool = False) -> MessageReader:
    """Return a reader of answers with the tools of the typed answers and of conversations."""
    tools = {**TOOLS, "get_weather": {}}
    return MessageReader(
        chat.format, tools, starts_in_reasoning=starts_in_reasoning, call_id="call{}".format
    )


def typed_answers(name: str) -> list[Golden]:
    """Return the answers that are typed for the family."""
    return [each for each in golden_answers() if each.family == MODELS[name].family]


def pieces_of(name: str, text: str) -> Iterable[str]:
    """Return the text that each token of an answer releases."""
    tokenizer = tokenizer_of(name)
    ids = tokenizer.encode(text, add_special_tokens=False)
    choice = ChoiceText(tokenizer, (), SamplingParams(), chat_of(name).shown_ids)
    return [*map(choice.push_plain, ids[:-1]), choice.push_last(ids[-1], None)]


@pytest.mark.parametrize("name", EACH)
def test_conversation_of_two_turns_is_rendered_and_read_back(name: str) -> None:
    """Parallel calls with their results stand in the prompt in order, and are read as they came."""
    chat = chat_of(name)
    assert chat.format.name == MODELS[name].chat_format
    assert not chat.refusal
    text = prompt_of(chat, two_turns())
    places = [
        text.index(words)
        for words in (ASKED["content"], 'Oslo"', "It snows", "I look again.", "Sunny in Rome")
    ]
    assert places == sorted(places)
    assert all(words in text for words in ('Bonn"', 'Rome"', "It rains in Bonn"))
    tools = [WEATHER]
    calling = chat.calling(tools_of(tools))
    prompt = chat.render(two_turns()[:1], tools, calling).text
    whole = chat.render(two_turns()[:4], tools, calling, add_generation_prompt=False).text
    reader = reader_of(chat)
    # The two need not fork at the end of the prompt, which may open a thought.
    begins = len(commonprefix([prompt, whole]))  # noqa: RUF071 -- letters are what is compared
    reader.push(whole[begins:].partition("It snows")[0])
    reader.finish()
    told = [json.loads(call.arguments) for call in reader.message.complete_calls]
    calls = [{"city": "Oslo", "days": 2}, {"city": "Bonn", "days": 3}]
    assert told == calls[: 2 if chat.choice.is_parallel else 1]


@pytest.mark.parametrize("name", EACH)
def test_streams_of_tokens_give_the_message_of_the_whole(name: str) -> None:
    """Token by token, marks that are tokens among them, the deltas joined are the typed message."""
    chat = chat_of(name)
    for golden in typed_answers(name):
        inside = golden.title.endswith("[in reasoning]")
        reader = golden.reader() if chat.format == golden.chat_format else None
        reader = reader or reader_of(chat, starts_in_reasoning=inside)
        pieces = pieces_of(name, golden.answer)
        assert "".join(pieces) == golden.answer
        deltas = [*map(reader.push, pieces), reader.finish()]
        message = reader.message
        told = [(call.id, call.name, call.arguments) for call in message.calls]
        assert joined(deltas) == (message.content, message.reasoning, told), golden.title
        assert (message.content, message.reasoning) == (golden.content, golden.reasoning)
        calls = [
            (call.name, plain(call.arguments) if call.is_complete else call.arguments)
            for call in message.calls
        ]
        assert calls == [each[:2] for each in golden.calls], golden.title


def asked_calls(chat: ChatRenderer, golden: Golden) -> str:
    """Write the calls of an answer as the model's template does."""
    written = chat.choice.written or chat.format.calls
    assert written is not None
    listed = []
    for call, arguments, _ in golden.calls:
        # A typed answer may have them in any order, a grammar has that of the schema.
        given = json.loads(arguments)
        order = {key: idx for idx, key in enumerate(TOOLS[call]["properties"])}
        given = dict(sorted(given.items(), key=lambda pair: order.get(pair[0], len(order))))
        listed.append(WrittenCall("D681PevKs", call, json.dumps(given, ensure_ascii=False)))
    return written.write(listed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_typed_answers_pass_every_choice_that_allows_them(name: str) -> None:
    """`auto`, `required` and a tool's name let its tokens through, whatever they are cut into."""
    taken: list[str] = []
    for golden in typed_answers(name):
        names = {call for call, _, _ in golden.calls}
        if not golden.calls or not all(is_complete for _, _, is_complete in golden.calls):
            continue
        rule = ReasoningRule(starts_inside=golden.title.endswith("[in reasoning]"))
        told = {"auto": golden.answer}
        if not golden.content and not golden.reasoning:
            # Those that are asked for are spelled as the model's template spells calls.
            asked = asked_calls(chat_of(name), golden)
            told |= dict.fromkeys(("required", *(names if len(names) == 1 else ())), asked)
        for choice, text in told.items():
            is_taken = passes(name, text, choice, rule)
            assert is_taken or any(words in golden.title for words in READ_ALONE), golden.title
            taken += [choice] * is_taken
        wrong = golden.answer.replace("get_", "gat_")
        assert wrong == golden.answer or not passes(name, wrong, "required", rule)
    assert {"auto", "required"} <= {*taken}
    assert not {*TOOLS}.isdisjoint(taken)


@pytest.mark.parametrize("is_thinking", [True, False], ids=["thinking", "not-thinking"])
@pytest.mark.parametrize("choice", ["auto", "required", "get_weather"])
@pytest.mark.parametrize("name", EACH)
def test_calls_stream_as_the_result_has_them(name: str, choice: str, is_thinking: bool) -> None:
    """Each token may be drawn; the deltas joined are the message that the whole answer gives."""
    chat = chat_of(name)
    names = {"enable_thinking": is_thinking, "thinking": is_thinking}
    tools = [
        {"type": "function", "function": {"name": tool, "description": tool, "parameters": schema}}
        for tool, schema in TOOLS.items()
    ]
    calling = chat.calling(tools_of(tools))
    prompt = chat.render([ASKED], tools, calling, chat_template_kwargs=names)
    assert prompt.may_reason is is_thinking
    thought, words = thought_of(chat, prompt), words_of(chat) if choice == "auto" else ""
    given = [{"location": "Zürich", "days": 2}, {"location": "Oslo\n", "unit": "celsius"}]
    written = chat.choice.written or chat.format.calls
    assert written is not None
    calls = written.write(
        [
            WrittenCall("D681PevKs", "get_weather", json.dumps(each, ensure_ascii=False))
            for each in given[: 2 if written.is_parallel else 1]
        ]
    )
    answer = thought + words + calls
    grammar = grammar_of(name, choice, prompt.reasoning())
    matcher = grammar.matcher()
    for token_id in tokenizer_of(name).encode(answer, add_special_tokens=False):
        assert int(matcher.mask()[token_id // 32]) >> token_id % 32 & 1
        matcher.accept(token_id)
    assert matcher.is_accepting

    messages = []
    for pieces in (pieces_of(name, answer), [answer]):
        reader = reader_of(chat, starts_in_reasoning=prompt.starts_in_reasoning)
        deltas = [*map(reader.push, pieces), reader.finish()]
        messages.append(joined(deltas))
    streamed, result = messages
    assert streamed == result
    assert result[:2] == ("I look." if words else "", "I see." if thought else "")
    assert [(each[1], json.loads(each[2])) for each in result[2]] == [
        ("get_weather", each) for each in given[: 2 if written.is_parallel else 1]
    ]
    if choice != "auto":
        assert not passes(name, thought + "I look.", choice, prompt.reasoning())
        wrong = answer.replace("get_weather", "get_whether")
        assert not passes(name, wrong, choice, prompt.reasoning())


def thought_of(chat: ChatRenderer, prompt: ChatPrompt) -> str:
    """Write a thought where the prompt lets the model have one."""
    thoughts = chat.format.reasoning
    if thoughts is None or not (prompt.may_reason or chat.format.has_channels):
        return ""
    opened = "" if prompt.starts_in_reasoning else thoughts.open
    again = "<|start|>assistant" if chat.format.has_channels else ""
    return f"{opened}I see.{thoughts.close}{again}"


def words_of(chat: ChatRenderer) -> str:
    """Write words before calls where the family has that."""
    if chat.format.has_channels:
        return "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant"
    written = chat.format.calls
    return "I look." if written is not None and written.has_text_before else ""


@pytest.mark.parametrize("name", EACH)
def test_model_that_is_asked_not_to_think_cannot(name: str) -> None:
    """A thought has no place then; gpt-oss alone is never kept from it."""
    chat = chat_of(name)
    written, thoughts = chat.choice.written or chat.format.calls, chat.format.reasoning
    assert written is not None
    call = written.write([WrittenCall("", "get_time", "{}")])
    prompt = chat.render(
        [ASKED], chat_template_kwargs={"enable_thinking": False, "thinking": False}
    )
    assert not prompt.starts_in_reasoning
    assert passes(name, call, "required", prompt.reasoning())
    if thoughts is not None and not chat.format.has_channels:
        thought = f"{thoughts.open}I see.{thoughts.close}"
        assert not passes(name, thought + call, "required", prompt.reasoning())
