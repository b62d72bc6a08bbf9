"""The offline API takes the fields of a job, and raises errors of its own alone."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from models.ending_families import EndingModel, Ends
from models.tiny_model import TinyModel

from tokenbus.engine import LLM, SamplingParams
from tokenbus.engine.errors import EngineError, GrammarFailed, RequestRejected
from tokenbus.engine.text.chat_prompt import ChatRenderer
from tokenbus.engine.types import FinishReason

if TYPE_CHECKING:
    from pathlib import Path

USER = [{"role": "user", "content": "hi"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "boolean"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> LLM:
    """Load a tiny model."""
    folder = TinyModel(tmp_path_factory.mktemp("tiny")).folder
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_threads": 1}
    return LLM(folder, num_pages=120, served_model_name="shop", **settings)


def test_seeds_that_are_left_open_are_drawn(llm: LLM) -> None:
    """Equal prompts of a call have different texts, and the same under one seed."""
    texts = {output.text for output in llm.generate(["a"] * 4, max_tokens=8, progress=False)}
    assert len(texts) == 4
    params = SamplingParams(max_tokens=8)
    assert len({output.text for output in llm.generate(["a"] * 4, params, progress=False)}) == 4
    seeded = llm.generate(["a"] * 4, max_tokens=8, seed=3, progress=False)
    assert len({output.text for output in seeded}) == 1


def test_one_text_is_one_stop_string(llm: LLM) -> None:
    """In a field or in `SamplingParams`, it ends an answer as a whole, not by its letters."""
    whole = llm.generate("a", max_tokens=12, seed=3, progress=False)[0].text
    stop = whole[4:7]
    expected = whole[: whole.index(stop)]
    by_field = llm.generate(prompt="a", max_tokens=12, seed=3, stop=stop, progress=False)[0]
    params = SamplingParams(max_tokens=12, seed=3, stop=stop, top_k=-1)  # type: ignore[arg-type]
    for output in (by_field, llm.generate("a", params, progress=False)[0]):
        assert (output.text, output.finish_reason) == (expected, FinishReason.STOP)


def test_prompt_is_scored_without_an_answer(llm: LLM) -> None:
    """With `max_tokens` 0 nothing is generated, and the prompt's logprobs are all there."""
    request: dict[str, Any] = {"token_ids": [5, 6, 7], "prompt_logprobs": 1, "progress": False}
    (longer,) = llm.generate(**request, max_tokens=2)
    (scored,) = llm.generate(**request, max_tokens=0, logprobs=True, n=2)
    assert scored.prompt_logprobs == longer.prompt_logprobs
    for choice in scored.choices:
        assert (choice.text, choice.token_ids, choice.logprobs) == ("", [], [])
        assert choice.finish_reason is FinishReason.LENGTH
    llm.engine.check_integrity()
    assert llm.stats().num_running == 0


def test_last_message_is_continued(llm: LLM) -> None:
    """By our field, or by a mark of the message itself, the prompt ends inside of it."""
    begun = {"role": "assistant", "content": "The answer is"}
    request: dict[str, Any] = {"max_tokens": 2, "progress": False}
    outputs = llm.chat([*USER, begun], **request, continue_final_message=True)
    outputs += llm.chat([*USER, {**begun, "prefix": True}], **request)
    for output in outputs:
        assert llm.tokenizer.decode(output.prompt_ids).endswith("The answer is")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("guided_regex", "(", 'regex: it does not compile: invalid regex "(": unclosed group'),
        ("guided_grammar", 'root ::= "a"', "lark: it does not compile: 1(7): Expected token"),
        (
            "response_format",
            {"type": "json_schema", "json_schema": {"schema": {"type": ["object", "nul"]}}},
            "JSON schema keyword 'type' at #: ['object', 'nul'] is not one of",
        ),
        ("grammar", {"kind": "regex", "source": "\n("}, "unclosed group"),
    ],
)
def test_grammar_that_is_of_no_use_names_its_field_in_one_line(
    llm: LLM, field: str, value: Any, reason: str
) -> None:
    """The error has the sender's spelling, and nothing of the grammar that was made of it."""
    asked: dict[str, Any] = {field: value}
    with pytest.raises(GrammarFailed) as failed:
        llm.generate("a", max_tokens=4, progress=False, **asked)
    assert failed.value.field == field
    told = str(failed.value)
    assert reason in told
    assert "\n" not in told
    assert "start:" not in told


def test_every_choice_has_its_calls(llm: LLM) -> None:
    """`n` answers with tools, a tool chosen as OpenAI's client says it."""
    choice = {"type": "function", "function": {"name": "f"}}
    request: dict[str, Any] = {"messages": USER, "tools": [TOOL], "tool_choice": choice}
    request |= {"n": 3, "max_tokens": 90, "seed": 3, "parallel_tool_calls": False, "model": "shop"}
    (output,) = llm.chat(**request, progress=False)
    assert [[call.name for call in c.tool_calls] for c in output.choices] == [["f"]] * 3


def test_answer_is_calls_or_content_by_the_schema(llm: LLM) -> None:
    """`response_format` beside `tools`: what is no call satisfies the schema, at random too."""
    schema = {
        "type": "object",
        "properties": {"ok": {"type": "boolean"}},
        "required": ["ok"],
        "additionalProperties": False,
    }
    shape = {"type": "json_schema", "json_schema": {"name": "s", "strict": True, "schema": schema}}
    request: dict[str, Any] = {"tools": [TOOL], "response_format": shape, "temperature": 1.5}
    request |= {"seed": 1, "max_tokens": 200, "parallel_tool_calls": False, "progress": False}
    begins = {mark: llm.tokenizer.encode(mark)[0] for mark in "{<"}
    (told,) = llm.chat(USER, **request, logit_bias={begins["{"]: 50})
    assert json.loads(told.content).keys() == {"ok"}
    (called,) = llm.chat(USER, **request, logit_bias={begins["<"]: 50})
    assert (called.content, called.finish_reason) == ("", FinishReason.TOOL_CALLS)
    (called,) = llm.chat(USER, **request, tool_choice="required")
    assert [call.name for call in called.tool_calls] == ["f"]
    (told,) = llm.chat(USER, **request, tool_choice="none")
    assert json.loads(told.content).keys() == {"ok"}


def test_calls_between_special_tokens_are_read(tmp_path: Path) -> None:
    """The marks of gpt-oss are special tokens, which texts leave out: with tools they are told."""
    marks = ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>")
    ends = Ends(("<|return|>", "<|call|>"), (), "<|return|>", others=marks)
    EndingModel(ends, tmp_path / "model")
    template = tmp_path / "template.jinja"
    template.write_text(
        "{% for m in messages %}<|start|>{{ m.role }}{% if m.role != 'assistant' %}<|message|>"
        "{% endif %}{{ m.content }}<|end|>{% endfor %}"
        "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
    )
    settings: dict[str, Any] = {"dtype": "float32", "device": "cpu", "num_threads": 1}
    settings |= {"num_pages": 120, "chat_template": str(template), "tool_format": "harmony"}
    llm = LLM(tmp_path / "model", **settings)
    request: dict[str, Any] = {"tools": [TOOL], "tool_choice": "f", "max_tokens": 100, "seed": 3}
    # No more thought than there is room for.
    request["max_reasoning_tokens"] = 0
    (output,) = llm.chat(USER, **request, parallel_tool_calls=False, progress=False)
    assert "<|message|>" in output.text
    assert [call.name for call in output.choices[0].tool_calls] == ["f"]


WRONG: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = [
    ("generate", "prompts", (5,), {}),
    ("generate", "prompt", (), {}),
    ("generate", "prompt", (), {"prompt": "a", "token_ids": [1]}),
    ("generate", "token_ids", ([None],), {}),
    ("generate", "token_ids.0", ([1.5],), {}),
    ("generate", "token_ids.0", ([True],), {}),
    ("generate", "token_ids", ([[]],), {}),
    ("generate", "token_ids", ([[600]],), {}),
    ("generate", "token_ids", (), {"token_ids": "no base64"}),
    ("generate", "prompt", ("",), {}),
    ("generate", "params", ("a", 5), {}),
    ("generate", "params", ("a", SamplingParams()), {"temperature": 0}),
    ("generate", "stop", ("a", SamplingParams(stop=5)), {}),  # type: ignore[arg-type]
    ("generate", "temperature", ("a",), {"temperature": {}}),
    ("generate", "model", ("a",), {"model": "gpt-4o"}),
    ("generate", "prompt", ("a",), {"prompt": "b"}),
    ("chat", "prompt", (USER,), {"prompt": "b"}),
    ("generate", "callback_url", ("a",), {"callback_url": "http://a"}),
    ("chat", "messages", (5,), {}),
    ("chat", "prompt", (None,), {}),
    ("chat", "messages", ("hi",), {}),
    ("chat", "messages", ([],), {}),
    ("chat", "messages.0", ([5],), {}),
    ("chat", "messages.0.role", ([{"content": "a"}],), {}),
    ("chat", "messages.0.content.0", ([{"role": "user", "content": [{"type": "file"}]}],), {}),
    ("chat", "tools", (USER,), {"tools": 5}),
    ("chat", "tools.0", (USER,), {"tools": [5]}),
    (
        "chat",
        "tools.1.function.parameters",
        (USER,),
        {"tools": [TOOL, {"name": "g", "parameters": {"properties": {"a": {"minimun": 1}}}}]},
    ),
    ("chat", "tool_choice", (USER,), {"tools": [TOOL], "tool_choice": "g"}),
    ("chat", "grammar", (USER, SamplingParams(grammar=5)), {"tools": [TOOL]}),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("call", "field", "args", "fields"), WRONG)
def test_no_raw_error_leaves_an_offline_call(
    llm: LLM, call: str, field: str, args: tuple[Any, ...], fields: dict[str, Any]
) -> None:
    """Whatever is given in place of prompts, messages and parameters is refused by its field."""
    with pytest.raises(RequestRejected) as caught:
        getattr(llm, call)(*args, **fields, progress=False)
    assert caught.value.field == field


def test_template_that_raises_refuses_its_conversation_alone(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a template raises is told by the field `messages`; the others of the call are served."""
    template = "{% if messages[0].content == 'bad' %}{{ messages.x.y }}{% endif %}"
    template += "{{ messages[0].content }}"
    renderer = ChatRenderer(llm.tokenizer, chat_template=template)
    monkeypatch.setattr(llm, "_chat", lambda: renderer)
    bad = [{"role": "user", "content": "bad"}]
    good, refused = llm.chat([USER, bad], max_tokens=2, progress=False)
    assert good.error is None
    assert isinstance(refused.error, EngineError)
    assert str(refused.error).startswith("messages: the model's chat template refuses them: ")


def test_device_begins_before_all_prompts_are_prepared(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As soon as there are as many tokens as a step takes; the answers are the same."""
    prompts = [chr(97 + number) * 30 for number in range(8)]
    expected = [output.text for output in llm.generate(prompts, seed=3, progress=False)]
    engine, told = llm.engine, []
    add, step = engine.add, engine.step
    monkeypatch.setattr(engine, "add", lambda request: told.append("add") or add(request))
    monkeypatch.setattr(engine, "step", lambda: told.append("step") or step())
    monkeypatch.setattr(engine._scheduler.sizer, "max_tokens", 70)
    monkeypatch.setattr(engine, "_one_step_ahead", True)
    outputs = llm.generate(prompts, seed=3, progress=False)
    assert [output.text for output in outputs] == expected
    first = told.index("step")
    assert 0 < first < 8
    # What is launched is not asked for again while it is under way.
    assert told[first + 1 : 9] == ["add"] * (8 - first)
