"""Offline answers are read as a job's are: the same message, finish and usage for the same tokens.

No model runs: a made-up engine says what models of a family write, and the worker's own parts read
the same tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from family_tokenizers import ANSWERS, EVERY_TIME, FAMILIES, family_tokenizer
from golden_answers import TOOLS, Golden, plain

from tokenbus.engine import LLM
from tokenbus.engine.chat.usage import Usage
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import (
    EngineLimits,
    EngineStats,
    FinishReason,
    Request,
    StepOutput,
    TokenDelta,
)
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.result import build_result
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.publishing.text.told_messages import told_messages

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.contract.result import JobResult

EACH = [
    pytest.param(family, marks=() if family in EVERY_TIME else pytest.mark.slow)
    for family in FAMILIES
]
# The prompt ends inside the reasoning block where it is asked to.
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {{ opened or '' }}{% endif %}"
)


class SayingEngine:
    """Answers each request with tokens that it is given, three a step."""

    def __init__(self, limits: EngineLimits) -> None:
        self.limits = limits
        self.answer: Sequence[int] = ()
        self.reason = FinishReason.STOP
        self.last: Request | None = None
        self._requests: list[Request] = []

    @property
    def has_work(self) -> bool:
        """True while a request is not answered."""
        return bool(self._requests)

    def add(self, request: Request) -> bool:
        """Take a request."""
        self.last = request
        self._requests.append(request)
        return False

    def abort(self, request_id: int, choice: int | None = None) -> None:
        """Take no notice: answers are whole by then."""

    def step(self) -> StepOutput:
        """Answer all requests at once."""
        asked, self._requests = self._requests, []
        deltas = [
            TokenDelta(
                request.request_id,
                choice,
                tuple(self.answer[at : at + 3]),
                self.reason if at + 3 >= len(self.answer) else None,
            )
            for request in asked
            for choice in range(request.params.n)
            for at in range(0, len(self.answer), 3)
        ]
        return StepOutput(tuple(deltas), (), (), EngineStats(99, 99, 0, 0, 0))


@dataclass
class Doors:
    """The two ways to a model of a family."""

    family: str
    llm: LLM
    engine: SayingEngine
    preparer: PromptPreparer

    @classmethod
    def of(cls, family: str) -> Doors:
        """Make both, with a template that renders neither tools nor calls."""
        tokenizer = family_tokenizer(family)
        tokenizer.chat_template = TEMPLATE
        calls, reasoning = next(
            each.chat_format for each in ANSWERS if each.family == family
        ).name.split("/")
        limits = EngineLimits(
            model="said", num_pages=99, page_size=16, max_model_len=1 << 16, max_num_seqs=4,
            eos_token_ids=(), vocab_size=len(tokenizer),
        )  # fmt: skip
        engine = SayingEngine(limits)
        loaded = SimpleNamespace(tokenizer=tokenizer)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tokenbus.engine.llm.load_for", lambda _: loaded)
            patch.setattr("tokenbus.engine.llm.engine_for", lambda *_: engine)
            llm = LLM("said", tool_format=calls, reasoning_format=reasoning)
        return cls(family, llm, engine, PromptPreparer(tokenizer, limits, chat_settings=llm.config))

    def request(self, golden: Golden, *, with_tools: bool) -> dict[str, Any]:
        """Return a request to which the model may have given a golden answer."""
        reasoning = golden.chat_format.reasoning
        opened = ""
        if reasoning is not None and golden.title.endswith("[in reasoning]"):
            opened = reasoning.open
        functions = [{"name": name, "parameters": schema} for name, schema in TOOLS.items()]
        tools = [{"type": "function", "function": each} for each in functions]
        return {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": 4096,
            **({"chat_template_kwargs": {"opened": opened}} if opened else {}),
            **({"tools": tools} if with_tools else {}),
        }

    def offline(self, asked: dict[str, Any], answer: str, reason: FinishReason) -> Any:
        """Return the output of the offline API."""
        self.engine.answer = family_tokenizer(self.family).encode(answer, add_special_tokens=False)
        self.engine.reason = reason
        (output,) = self.llm.chat(**asked, progress=False)
        return output

    def queued(self, asked: dict[str, Any], answer: str, reason: FinishReason) -> JobResult:
        """Return the result of a job, as its publisher would put it together."""
        tokenizer = family_tokenizer(self.family)
        job = self.preparer.tokenise(JobRequest(**asked))
        ids = tokenizer.encode(answer, add_special_tokens=False)
        texts = ChoiceText(tokenizer, job.prompt_ids, job.params, job.shown_ids)
        released = texts.push(ids, is_last=True).texts
        ends = [len("".join(released[: at + 1])) for at in range(len(ids))]
        events = [Event("j", 1, 0, 1, len(ids), "".join(released), tuple(ids), tuple(ends))]
        finish = Finish(reason.value, Usage(len(job.prompt_ids), 0, len(ids)), choices=(reason,))
        messages = told_messages(job.chat, None, "j", 1, is_new=True)
        if messages is not None:
            transcript = SimpleNamespace(
                num_choices=1,
                num_tokens=lambda _: len(ids),
                text_of=lambda _: "".join(released),
                part_of=lambda *_: ("".join(released), ends),
            )
            finish, _ = messages.close(transcript, finish)  # type: ignore[arg-type]
        return build_result("j", 1, events, finish)


@cache
def doors_of(family: str) -> Doors:
    """Return the doors of a family, made once."""
    return Doors.of(family)


def check_equal(output: Any, result: JobResult) -> None:
    """Check that an output says what a result says, but for the ids of calls."""
    ours, theirs = output.message, result.message
    assert (ours.content, ours.reasoning) == (theirs.content, theirs.reasoning)
    told = [[(c.name, c.arguments, c.is_complete) for c in each.calls] for each in (ours, theirs)]
    assert told[0] == told[1]
    assert [len(call.id) for call in ours.calls] == [len(call.id) for call in theirs.calls]
    assert (output.text, output.content) == (result.text, result.content)
    assert [(c.name, c.arguments) for c in output.tool_calls] == [
        (c.name, c.arguments) for c in result.tool_calls
    ]
    assert output.finish_reason.value == result.finish_reason
    assert output.usage == result.finish.usage


@pytest.mark.parametrize("family", EACH)
def test_golden_answers_are_the_same_message_at_both_doors(family: str) -> None:
    """Whether the model stopped or was cut, with tools and without, its reasoning open or not."""
    doors = doors_of(family)
    for golden in (each for each in ANSWERS if each.family == family):
        for reason in (FinishReason.STOP, FinishReason.LENGTH):
            asked = doors.request(golden, with_tools=True)
            output = doors.offline(asked, golden.answer, reason)
            check_equal(output, doors.queued(asked, golden.answer, reason))
            assert (output.content, output.reasoning) == (golden.content, golden.reasoning)
            assert [(call.name, plain(call.arguments)) for call in output.tool_calls] == [
                (name, plain(text)) for name, text, is_complete in golden.calls if is_complete
            ]
            has_called = reason is FinishReason.STOP and bool(output.tool_calls)
            assert output.finish_reason is (FinishReason.TOOL_CALLS if has_called else reason)
        asked = doors.request(golden, with_tools=False)
        output = doors.offline(asked, golden.answer, FinishReason.STOP)
        check_equal(output, doors.queued(asked, golden.answer, FinishReason.STOP))
        assert not output.tool_calls


def test_reasoning_is_counted_and_told_apart_offline() -> None:
    """The block that the prompt has opened is no content; its tokens stand in the usage."""
    doors = doors_of("qwen3")
    golden = Golden("qwen3", "[in reasoning]", "")
    asked = doors.request(golden, with_tools=True) | {"n": 2}
    call = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    output = doors.offline(asked, f"so it is\n</think>\n\n{call}", FinishReason.STOP)
    for choice in output.choices:
        assert (choice.reasoning, choice.content) == ("so it is", "")
        assert [call.name for call in choice.tool_calls] == ["get_time"]
        assert choice.finish_reason is FinishReason.TOOL_CALLS
        assert choice.num_reasoning_tokens == len("so it is")
    assert output.usage.reasoning_tokens == 2 * len("so it is")
    assert len({choice.tool_calls[0].id for choice in output.choices}) == 2
    dumped = output.message.dump()
    assert dumped["reasoning_content"] == "so it is"
    assert dumped["tool_calls"][0]["function"] == {"name": "get_time", "arguments": "{}"}


def test_calls_that_were_whole_when_the_answer_was_cut_are_kept() -> None:
    """At both doors: the one that was cut is in the message, and may not be carried out."""
    doors = doors_of("qwen3")
    asked = doors.request(Golden("qwen3", "", ""), with_tools=True)
    whole = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
    cut = '\n<tool_call>\n{"name": "search", "arguments": {"query": "a'
    output = doors.offline(asked, whole + cut, FinishReason.LENGTH)
    check_equal(output, doors.queued(asked, whole + cut, FinishReason.LENGTH))
    assert [call.name for call in output.tool_calls] == ["get_time"]
    assert [call.is_complete for call in output.message.calls] == [True, False]
    assert output.finish_reason is FinishReason.LENGTH
    assert len(output.message.dump()["tool_calls"]) == 1


def test_parallel_calls_are_one_at_both_doors_where_a_request_says_so() -> None:
    """The constraint on the answer is the same, whichever door the request came through."""
    doors = doors_of("qwen3")
    asked = doors.request(Golden("qwen3", "", ""), with_tools=True)
    for parallel in (True, False):
        wanted = asked | {"parallel_tool_calls": parallel}
        queued = doors.preparer.tokenise(JobRequest(**wanted)).params.grammar
        doors.offline(wanted, "Hello.", FinishReason.STOP)
        assert doors.engine.last is not None
        assert doors.engine.last.params.grammar == queued
        assert queued is not None
        assert ("{0,31}" in queued.source) is parallel
