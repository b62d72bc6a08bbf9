"""The demo model, in fp32, against transformers: six prompts, every way the engine can run them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.greedy_driver import Reference
from models.scheduler_bench import Optimist
from transformers import AutoModelForCausalLM

from tokenbus.engine.build import load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import RequestFailed, RequestRejected, SequenceTooLong
from tokenbus.engine.llm import LLM
from tokenbus.engine.text.choice_text import ChoiceText, Released
from tokenbus.engine.types import FinishReason, GrammarKind, GrammarSpec, SamplingParams
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from tokenbus.engine.weights.loader import LoadedModel

NUM_TOKENS = 16
SYSTEM = (
    "You are the support agent of Lindgren Outdoor, a shop for tents, boots and backpacks."
    " Answer in at most three sentences, be friendly, and never promise a refund."
)
QUESTIONS = (
    "Where is my order 4711?",
    "Which tent keeps two people dry in heavy rain?",
    "Do you ship to Norway?",
)
TEXTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a small shop by the sea,",
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Return the demo model in fp32, fetched if need be; every engine here runs it."""
    return load_for(EngineConfig(str(model_store.pull("smollm2-135m")), dtype="float32"))


def engine_of(loaded: LoadedModel, **settings: Any) -> LLM:
    """Return an engine around the model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenbus.engine.llm.load_for", lambda _: loaded)
        return LLM("smollm2-135m", dtype="float32", **settings)


@pytest.fixture(scope="module")
def llm(loaded: LoadedModel) -> LLM:
    """Return the engine with a roomy pool."""
    return engine_of(loaded, num_pages=400, max_num_seqs=16)


@pytest.fixture(scope="module")
def prompts(llm: LLM) -> list[list[int]]:
    """Return six prompts as ids: three chats with one system prompt, three plain texts."""
    chats = []
    for question in QUESTIONS:
        messages = [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": question},
        ]
        encoded = llm.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True
        )
        chats.append(list(encoded["input_ids"]))
    return chats + [llm.tokenizer(text)["input_ids"] for text in TEXTS]


@pytest.fixture(scope="module")
def references(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    """Return what the engine says to all prompts at once, proven with transformers.

    Each answer is greedy, and goes up to and with the end of sequence.
    """
    outputs = llm.generate(prompts, params(), progress=False)
    assert outputs[0].num_cached_tokens == 0
    answers = [output.token_ids for output in outputs]
    reference: Any = AutoModelForCausalLM.from_pretrained(
        model_store.pull("smollm2-135m"), dtype=torch.float32
    )
    Reference(reference.eval()).check(prompts, answers)
    eos = reference.generation_config.eos_token_id
    for answer in answers:
        assert len(answer) == NUM_TOKENS or answer[-1] == eos
        assert eos not in answer[:-1]
    return answers


def params() -> SamplingParams:
    """Return greedy parameters of the references' length."""
    return SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)


def test_batched_tokens_equal_transformers_without_and_with_cache_hits(
    llm: LLM, prompts: list[list[int]], references: list[list[int]]
) -> None:
    """Six prompts at once, once more: their prefixes come from the cache."""
    outputs = llm.generate(prompts, params(), progress=False)
    assert [output.token_ids for output in outputs] == references
    assert outputs[0].num_cached_tokens >= 32


@pytest.mark.slow
def test_tokens_are_the_same_alone(
    llm: LLM, prompts: list[list[int]], references: list[list[int]]
) -> None:
    """One prompt at a time gives what the batch gave."""
    for prompt, reference in zip(prompts[::2], references[::2], strict=True):
        llm.reset_prefix_cache()
        assert llm.generate(prompt, params(), progress=False)[0].token_ids == reference


def test_tokens_survive_preemption(
    loaded: LoadedModel, prompts: list[list[int]], references: list[list[int]]
) -> None:
    """A pool too small for all makes sequences give up their pages and go on later."""
    small = engine_of(loaded, num_pages=12, max_num_seqs=10, max_batch_tokens=64)
    small.engine._scheduler.estimator = Optimist()
    outputs = small.generate(prompts, params(), progress=False)
    assert [output.token_ids for output in outputs] == references
    assert small.stats().preemptions_total > 0


def test_stop_string_ends_the_text_before_it(llm: LLM) -> None:
    """Nothing from the stop string on is in the text, the reason names it."""
    free = llm.generate(TEXTS[2], params(), progress=False)[0]
    stop = free.text[12:16]
    output = llm.generate(
        TEXTS[2],
        SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, stop=(stop,)),
        progress=False,
    )[0]
    assert output.text == free.text[: free.text.index(stop)]
    assert output.choices[0].stop_reason == stop
    assert output.finish_reason == "stop"


def test_stop_reason_is_the_id_or_nothing(
    llm: LLM, prompts: list[list[int]], references: list[list[int]]
) -> None:
    """A stop id is named as the reason; the model's own end and the length name none."""
    stop = references[4][5]
    by_id = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, stop_token_ids=(stop,))
    output = llm.generate(prompts[4], by_id, progress=False)[0]
    assert output.choices[0].stop_reason == stop
    assert output.finish_reason == "stop"
    bias = {llm.engine.limits.eos_token_ids[0]: 100.0}
    ended = llm.generate(prompts[4], replace(params(), logit_bias=bias), progress=False)[0]
    assert ended.finish_reason == "stop"
    assert ended.choices[0].stop_reason is None
    assert ended.text == ""


def test_chat_goes_through_the_template(
    llm: LLM, prompts: list[list[int]], references: list[list[int]]
) -> None:
    """A conversation gives the same tokens as its rendered prompt."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": QUESTIONS[0]}]
    output = llm.chat(messages, params(), progress=False)[0]
    assert output.prompt_ids == tuple(prompts[0])
    assert output.token_ids == references[0]
    assert output.text == llm.tokenizer.decode(references[0], skip_special_tokens=True)


def test_bad_requests_of_a_batch_get_their_errors_and_the_rest_is_answered(
    llm: LLM, prompts: list[list[int]], references: list[list[int]]
) -> None:
    """Refused, failed on the way or not to be tokenised: each has its error, in its place."""
    good = params()
    broken = GrammarSpec(GrammarKind.REGEX, "(")
    batch: list[tuple[Any, Any, type[Exception] | None]] = [
        (prompts[0], good, None),
        (prompts[0], replace(good, temperature=float("nan")), RequestRejected),
        ([], good, RequestRejected),
        ([10**30], good, RequestRejected),
        (prompts[1], replace(good, grammar=broken), RequestFailed),
        (prompts[1], good, None),
        ("x", replace(good, max_tokens=10**9), RequestRejected),
        (prompts[1], replace(good, max_tokens=8192), SequenceTooLong),
        ("\ud800", good, RequestRejected),
        (None, good, RequestRejected),
        (prompts[2], None, RequestRejected),
        (prompts[2], good, None),
    ]
    outputs = llm.generate([b[0] for b in batch], [b[1] for b in batch], progress=False)
    answered = iter(references)
    for output, (_, _, error) in zip(outputs, batch, strict=True):
        if error is None:
            assert output.error is None
            assert output.token_ids == next(answered)
        else:
            assert isinstance(output.error, error)
            assert output.finish_reason is FinishReason.FAILED
    assert not llm.engine.has_work
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1


def test_call_of_which_nothing_can_be_answered_raises(llm: LLM, prompts: list[list[int]]) -> None:
    """A lone bad request, or a batch of nothing else, raises what the first one did wrong."""
    broken = replace(params(), grammar=GrammarSpec(GrammarKind.REGEX, "("))
    with pytest.raises(RequestFailed, match="regex: it does not compile"):
        llm.generate(prompts[0], broken, progress=False)
    with pytest.raises(RequestRejected, match="temperature"):
        llm.generate(prompts[:2], replace(params(), temperature=-1), progress=False)
    assert not llm.engine.has_work


def test_text_that_raises_fails_its_request_alone(
    llm: LLM, prompts: list[list[int]], references: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A detokeniser that raises for one request leaves the others their answers."""
    push = ChoiceText.push

    def odd(self: ChoiceText, ids: Any, **told: Any) -> Released:
        if self._stops._include:
            raise ValueError("planted")
        return push(self, ids, **told)

    monkeypatch.setattr(ChoiceText, "push", odd)
    bad = replace(params(), include_stop=True)
    outputs = llm.generate(prompts[:3], [params(), bad, params()], progress=False)
    assert isinstance(outputs[1].error, RequestFailed)
    assert [outputs[i].token_ids for i in (0, 2)] == [references[i] for i in (0, 2)]
    assert not llm.engine.has_work
