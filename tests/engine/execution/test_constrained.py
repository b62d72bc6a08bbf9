"""Grammars in the running batch: they bind, they fail alone, and they survive a resume."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import TYPE_CHECKING

import jsonschema
import pytest

from tokenbus.engine import LLM
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.types import (
    FinishReason,
    GrammarKind,
    GrammarSpec,
    Request,
    SamplingParams,
    TokenDelta,
)
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from tokenbus.engine.scheduling.sequence import Sequence

SCHEMA = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "maxLength": 20},
        "in_stock": {"type": "boolean"},
        "stars": {"type": "integer", "minimum": 1, "maximum": 5},
    },
    "required": ["product", "in_stock", "stars"],
    "additionalProperties": False,
}
JSON = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
ORDER = GrammarSpec(GrammarKind.REGEX, r"[A-Z]{2}-[0-9]{4}")
COLOUR = GrammarSpec(GrammarKind.CHOICE, json.dumps(["dark green", "dark blue", "red"]))
PROMPT = "Describe one product of an outdoor shop.\n"


@pytest.fixture(scope="module")
def llm() -> LLM:
    """Return the demo model with a small pool."""
    folder = model_store.pull("smollm2-135m")
    return LLM(folder, num_pages=200, max_num_seqs=8, max_batch_tokens=64)


def run(llm: LLM, requests: list[Request]) -> dict[int, list[TokenDelta]]:
    """Run requests to their ends and return their deltas."""
    deltas: dict[int, list[TokenDelta]] = {request.request_id: [] for request in requests}
    for request in requests:
        llm.engine.add(request)
    while llm.engine.has_work:
        for delta in llm.engine.step().deltas:
            deltas[delta.request_id].append(delta)
        llm.engine.check_integrity()
    return deltas


def tokens(deltas: list[TokenDelta]) -> list[int]:
    """Return all tokens of a choice."""
    return [token_id for delta in deltas for token_id in delta.token_ids]


def test_outputs_satisfy_their_grammars_beside_free_ones(llm: LLM) -> None:
    """Schema, pattern and choice bind in one batch with a free sequence, at temperature 1.5."""
    params = SamplingParams(max_tokens=80, temperature=1.5, seed=3)
    bound = [replace(params, grammar=grammar) for grammar in (JSON, ORDER, COLOUR)]
    free = replace(params, max_tokens=20)
    outputs = llm.generate([PROMPT] * 4, [*bound, free], progress=False)
    jsonschema.validate(json.loads(outputs[0].text), SCHEMA)
    assert re.fullmatch(r"[A-Z]{2}-[0-9]{4}", outputs[1].text)
    assert outputs[2].text in ("dark green", "dark blue", "red")
    assert [output.finish_reason for output in outputs[:3]] == [FinishReason.STOP] * 3


def test_grammar_that_does_not_compile_fails_its_own_request(llm: LLM) -> None:
    """The reason names the keyword; the healthy request beside it runs to its end."""
    bad = GrammarSpec(GrammarKind.JSON_SCHEMA, '{"type": "array", "contains": {"const": 1}}')
    ids = tuple(llm.tokenizer(PROMPT)["input_ids"])
    params = SamplingParams(max_tokens=20, temperature=0.0)
    deltas = run(
        llm,
        [Request(100, ids, replace(params, grammar=bad)), Request(101, ids, params)],
    )
    assert deltas[100][-1].finish_reason is FinishReason.FAILED
    assert "contains" in str(deltas[100][-1].error)
    assert tokens(deltas[100]) == []
    assert deltas[101][-1].finish_reason in (FinishReason.LENGTH, FinishReason.STOP)
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1


def test_grammar_that_cannot_advance_fails_its_own_request(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A matcher that breaks in the middle ends one sequence; its neighbour is served on."""
    advance = llm.engine._constrained.accept

    def break_one(seq: Sequence, token_id: int) -> list[int]:
        if seq.request.request_id == 110 and seq.num_output >= 3:
            raise GrammarRejected("grammar", "the parser gave up")
        return advance(seq, token_id)

    monkeypatch.setattr(llm.engine._constrained, "accept", break_one)
    ids = tuple(llm.tokenizer(PROMPT)["input_ids"])
    params = SamplingParams(max_tokens=80, temperature=0.9, seed=11, grammar=JSON)
    deltas = run(llm, [Request(110, ids, params), Request(111, ids, params)])
    assert deltas[110][-1].finish_reason is FinishReason.FAILED
    assert "the parser gave up" in str(deltas[110][-1].error)
    assert deltas[111][-1].finish_reason is FinishReason.STOP
    jsonschema.validate(json.loads(llm.tokenizer.decode(tokens(deltas[111]))), SCHEMA)
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1


def test_resumed_constrained_output_goes_on_as_if_unbroken(llm: LLM) -> None:
    """Logged tokens are fed through the grammar; the rest is the rest of the unbroken run."""
    ids = tuple(llm.tokenizer(PROMPT)["input_ids"])
    params = SamplingParams(max_tokens=80, temperature=0.9, seed=11, grammar=JSON)
    whole = tokens(run(llm, [Request(200, ids, params)])[200])
    for cut in (1, len(whole) // 2, len(whole) - 1):
        request = Request(201 + cut, ids, params, resumed_ids=(tuple(whole[:cut]),))
        assert tokens(run(llm, [request])[201 + cut]) == whole[cut:]


def test_forced_tokens_cost_no_draw(llm: LLM) -> None:
    """A grammar with one answer is delivered in fewer steps than it has tokens."""
    only = GrammarSpec(GrammarKind.CHOICE, json.dumps(["The answer is always the same sentence."]))
    before = llm.stats().steps_total
    output = llm.generate(
        PROMPT, SamplingParams(max_tokens=40, temperature=1.0, grammar=only), progress=False
    )[0]
    assert output.text == "The answer is always the same sentence."
    assert llm.stats().steps_total - before < len(output.token_ids)


def test_label_under_a_known_grammar_takes_one_step_and_no_thread(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first mask is there when the request comes, and the same label comes as before."""
    ids = tuple(llm.tokenizer(PROMPT)["input_ids"])
    params = SamplingParams(max_tokens=1, temperature=1.0, seed=5, grammar=COLOUR)
    first = tokens(run(llm, [Request(400, ids, params)])[400])
    preparer = llm.engine._constrained._preparer
    assert preparer is not None
    monkeypatch.setattr(preparer._mask_threads, "submit", lambda *_: pytest.fail("a thread"))
    llm.engine.add(Request(401, ids, params))
    [delta] = llm.engine.step().deltas
    assert (list(delta.token_ids), delta.finish_reason) == (first, FinishReason.LENGTH)


def test_outputs_that_begin_alike_share_masks_to_their_ends(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was drawn before is drawn again, token for token, without a mask being made."""
    ids = tuple(llm.tokenizer(PROMPT)["input_ids"])
    params = SamplingParams(max_tokens=12, temperature=1.5, grammar=COLOUR)
    requests = [Request(410 + seed, ids, replace(params, seed=seed)) for seed in range(6)]
    before = run(llm, requests)
    preparer = llm.engine._constrained._preparer
    assert preparer is not None
    monkeypatch.setattr(preparer._mask_threads, "submit", lambda *_: pytest.fail("a thread"))
    after = run(llm, requests)
    assert {key: tokens(deltas) for key, deltas in after.items()} == {
        key: tokens(deltas) for key, deltas in before.items()
    }
    texts = {llm.tokenizer.decode(tokens(deltas)) for deltas in after.values()}
    assert {text.split("<")[0] for text in texts} <= {"dark green", "dark blue", "red"}


def test_output_that_was_complete_when_it_was_resumed_ends_without_a_token(llm: LLM) -> None:
    """Its earlier owner died between the last token and the end: nothing is added to it."""
    ids = tuple(llm.tokenizer(PROMPT)["input_ids"])
    params = SamplingParams(max_tokens=80, temperature=0.9, seed=11, grammar=JSON)
    whole = tokens(run(llm, [Request(300, ids, params)])[300])
    deltas = run(llm, [Request(301, ids, params, resumed_ids=(tuple(whole),))])[301]
    assert tokens(deltas) == []
    assert deltas[-1].finish_reason is FinishReason.STOP


def test_chat_with_tools_answers_with_calls_that_satisfy_their_schemas(llm: LLM) -> None:
    """A required call names a given tool, its arguments validate; `none` leaves the tools out."""
    messages = [{"role": "user", "content": "Where is my order 4711?"}]
    tools = [{"type": "function", "function": {"name": "describe", "parameters": SCHEMA}}]
    params = SamplingParams(max_tokens=100, temperature=1.5, seed=3)
    output = llm.chat(
        messages,
        params,
        tools=tools,
        tool_choice="required",
        parallel_tool_calls=False,
        progress=False,
    )[0]
    assert output.finish_reason is FinishReason.TOOL_CALLS
    assert output.tool_calls
    for call in output.tool_calls:
        assert call.name == "describe"
        jsonschema.validate(json.loads(call.arguments), SCHEMA)
    prompt = llm.tokenizer.decode(output.prompt_ids)
    assert "describe" in prompt
    free = replace(params, max_tokens=2)
    plain = llm.chat(messages, free, tools=tools, tool_choice="none", progress=False)[0]
    assert plain.prompt_ids == llm.chat(messages, free, progress=False)[0].prompt_ids
    lark = GrammarSpec(GrammarKind.LARK, 'start: "a"')
    with pytest.raises(RequestRejected, match="stands not beside tools"):
        llm.chat(messages, replace(params, grammar=lark), tools=tools, progress=False)
