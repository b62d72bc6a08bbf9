"""Logprobs under grammars: one entry per token id, forced ones too, equal to transformers'."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from models.raw_scores import RawScores
from models.scheduler_bench import Optimist
from models.tiny_model import TinyModel

from tokenbus.engine import LLM, backends
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.text.chat_prompt import ChatRenderer
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
    from tokenbus.engine.scheduling.plan import StepPlan
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.types import TokenLogprobs

pytestmark = pytest.mark.each_value

SCHEMA = {
    "type": "object",
    "properties": {
        "product_name": {"type": "string", "maxLength": 8},
        "in_stock": {"type": "boolean"},
    },
    "required": ["product_name", "in_stock"],
    "additionalProperties": False,
}
COLOURS = ["dark green is the colour of it", "dark blue", "red"]
ONLY = "The answer is always the same sentence."
CHOICE = GrammarSpec(GrammarKind.CHOICE, json.dumps(COLOURS))
SURE = GrammarSpec(GrammarKind.CHOICE, json.dumps([ONLY]))
JSON = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
TOOL = {"type": "function", "function": {"name": "describe", "parameters": SCHEMA}}
PROMPT = "where is my parcel, and when will it arrive?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Save a tiny model of bytes, under which a forced run has many tokens."""
    return TinyModel(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def scores(tiny: TinyModel) -> RawScores:
    """Return transformers' side of it."""
    return RawScores(tiny.folder)


@pytest.fixture(scope="module")
def llm(tiny: TinyModel) -> LLM:
    """Return an engine with room for everybody."""
    return made(tiny)


def made(tiny: TinyModel, **settings: Any) -> LLM:
    """Build an engine around the tiny model."""
    chosen = {"num_pages": 300, "page_size": 4} | settings
    return LLM(tiny.folder, dtype="float32", device="cpu", num_threads=1, **chosen)


def tool_grammar(llm: LLM) -> GrammarSpec:
    """Return the grammar of an answer that has to call the tool."""
    return ChatRenderer(llm.tokenizer).calling(tools_of([TOOL])).grammar("describe", parallel=False)


def asked(llm: LLM) -> list[SamplingParams]:
    """Ask for every kind of constraint, bound and number of alternatives, and for none."""
    free = SamplingParams(max_tokens=80, temperature=1.2, seed=6, logprobs=0)
    return [
        replace(free, grammar=CHOICE),
        replace(free, grammar=CHOICE, max_tokens=3, logprobs=2),
        replace(free, grammar=SURE, logprobs=3),
        replace(free, grammar=SURE, max_tokens=7),
        replace(free, grammar=SURE, max_tokens=1),
        replace(free, grammar=SURE, stop_token_ids=tuple(llm.tokenizer.encode("w"))),
        replace(free, grammar=JSON, n=3, logprobs=5, repetition_penalty=1.3),
        replace(free, grammar=JSON, max_tokens=22, logit_bias={70: 4.0}),
        replace(free, grammar=tool_grammar(llm), max_tokens=150, logprobs=1),
        replace(free, max_tokens=9, logprobs=4),
        replace(free, grammar=JSON, logprobs=None),
    ]


class Told:
    """What an engine told of one choice, each delta checked as it came."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.entries: list[TokenLogprobs] = []
        self.reason: FinishReason | None = None

    def take(self, delta: TokenDelta, *, has_logprobs: bool) -> None:
        """Add a delta: an entry per id, of that id."""
        assert self.reason is None
        assert len(delta.logprobs) == len(delta.token_ids) * has_logprobs
        self.ids += delta.token_ids
        self.entries += delta.logprobs
        self.reason = delta.finish_reason
        if has_logprobs:
            assert [entry.token_id for entry in self.entries] == self.ids

    def check(self, scores: RawScores, prompt_ids: tuple[int, ...], num_top: int) -> None:
        """Compare all entries with transformers."""
        triples = [(entry.logprob, entry.rank, entry.top) for entry in self.entries]
        scores.check(prompt_ids, self.ids, triples, num_top)

    @property
    def marks(self) -> str:
        """Show what was forced."""
        return "".join("f" if entry.forced else "." for entry in self.entries)


def run(llm: LLM, requests: list[Request]) -> dict[tuple[int, int], Told]:
    """Run requests to their ends."""
    told = {
        (item.request_id, choice): Told() for item in requests for choice in range(item.params.n)
    }
    for item in requests:
        llm.engine.add(item)
    wants = {item.request_id: item.params.logprobs is not None for item in requests}
    while llm.engine.has_work:
        for delta in llm.engine.step().deltas:
            told[delta.request_id, delta.choice].take(delta, has_logprobs=wants[delta.request_id])
        llm.engine.check_integrity()
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    return told


def prompt_of(llm: LLM) -> tuple[int, ...]:
    """Return the ids of the prompt."""
    return tuple(llm.tokenizer.encode(PROMPT))


def requests_of(llm: LLM) -> list[Request]:
    """Return a batch of all that is asked."""
    return [Request(idx, prompt_of(llm), params) for idx, params in enumerate(asked(llm))]


@pytest.fixture(params=["native", "torch"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run on the compiled kernels, and without them."""
    if request.param == "torch":
        monkeypatch.setattr(backends, "native_library", lambda: None)
    return str(request.param)


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
@pytest.mark.parametrize("settings", [{}, {"max_batch_tokens": 3}], ids=["whole", "chunk3"])
@pytest.mark.usefixtures("path")
def test_every_token_has_the_entry_of_transformers(
    tiny: TinyModel, scores: RawScores, settings: dict[str, Any], ahead: bool
) -> None:
    """Whatever forces it and wherever it ends; a second time over pages from the cache."""
    llm = made(tiny, **settings)
    llm.engine._one_step_ahead = ahead
    requests = requests_of(llm)
    first = run(llm, requests)
    cached = llm.stats().cached_tokens_total
    second = run(llm, requests)
    assert llm.stats().cached_tokens_total > cached
    for (idx, choice), told in first.items():
        params = requests[idx].params
        again = second[idx, choice]
        assert (again.ids, again.marks, again.reason) == (told.ids, told.marks, told.reason)
        if params.logprobs is not None:
            for each in (told, again):
                each.check(scores, prompt_of(llm), params.logprobs)
    assert set(first[2, 0].marks) == {"f"}
    assert first[2, 0].reason is FinishReason.STOP
    assert [len(first[idx, 0].ids) for idx in (1, 3, 4)] == [3, 7, 1]
    assert {first[idx, 0].reason for idx in (3, 4)} == {FinishReason.LENGTH}
    assert llm.tokenizer.decode(first[5, 0].ids) == "The answ"
    assert "f." in first[6, 2].marks
    assert set(first[9, 0].marks) == {"."}
    llm.close()


def test_run_that_goes_on_at_any_token_has_the_entries_of_the_unbroken_one(
    llm: LLM, scores: RawScores
) -> None:
    """A later owner finds some tokens logged, also in the middle of a forced run."""
    params = asked(llm)[6]
    whole = [run(llm, [Request(0, prompt_of(llm), params)])[0, choice] for choice in range(3)]
    lens = [len(told.ids) for told in whole]
    for cut in range(1, min(lens)):
        resumed = Request(
            cut, prompt_of(llm), params, resumed_ids=tuple(tuple(t.ids[:cut]) for t in whole)
        )
        rest = run(llm, [resumed])
        for choice, told in enumerate(whole):
            again = rest[cut, choice]
            assert again.ids == told.ids[cut:]
            assert again.marks == told.marks[cut:]
            again.check(scores, (*prompt_of(llm), *told.ids[:cut]), params.logprobs or 0)


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
def test_preempted_runs_are_scored_once(
    tiny: TinyModel, scores: RawScores, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """A pool without room for all computes some again, also amid forced runs and behind them."""
    llm, roomy = made(tiny, num_pages=110, page_size=2), made(tiny)
    llm.engine._one_step_ahead = ahead
    # Expecting one token per output over-admits, so that pages run out.
    llm.engine._scheduler.estimator = Optimist()
    amid, over = _watch_preemptions(llm, monkeypatch)
    params = asked(llm)
    kinds = [params[2], params[6], params[7], params[8], replace(params[3], max_tokens=34)]
    requests = [
        Request(idx, (idx, *prompt_of(llm)), replace(kinds[idx % 5], seed=idx)) for idx in range(40)
    ]
    wanted, told = run(roomy, requests), run(llm, requests)
    for (idx, choice), each in told.items():
        asked_for = requests[idx]
        assert each.ids == wanted[idx, choice].ids
        assert each.marks == wanted[idx, choice].marks
        each.check(scores, tuple(asked_for.prompt_ids), asked_for.params.logprobs or 0)
    assert amid
    assert over
    llm.close()


def _watch_preemptions(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Sequence], list[Sequence]]:
    """Note who is preempted amid a forced run, and who with nothing behind it."""
    amid: list[Sequence] = []
    over: list[Sequence] = []
    preempt = llm.engine._scheduler._preempt

    def noted(seq: Sequence, plan: StepPlan) -> None:
        if seq.num_unscored:
            (amid if seq.held_end is None else over).append(seq)
        preempt(seq, plan)

    monkeypatch.setattr(llm.engine._scheduler, "_preempt", noted)
    return amid, over


def test_stop_string_in_a_forced_run_drops_tokens_with_their_entries(
    llm: LLM, scores: RawScores
) -> None:
    """Offline, where the text is watched: as many entries as ids, and the values are theirs."""
    params = SamplingParams(max_tokens=80, temperature=0.0, logprobs=2, grammar=SURE)
    for stop in ("always", "T", "sentence."):
        output = llm.generate([PROMPT], replace(params, stop=(stop,)), progress=False)[0]
        assert output.text == ONLY[: ONLY.index(stop)]
        entries = [(entry.logprob, entry.rank, entry.top) for entry in output.logprobs]
        scores.check(output.prompt_ids, output.token_ids, entries, 2)


def test_abort_in_a_forced_run_delivers_nothing_more(llm: LLM) -> None:
    """What waits for its entries goes with its sequence, and its pages are free at once."""
    params = SamplingParams(max_tokens=80, temperature=0.0, logprobs=0, grammar=SURE)
    llm.engine.add(Request(5, prompt_of(llm), params))
    told = Told()
    while not told.ids:
        for delta in llm.engine.step().deltas:
            told.take(delta, has_logprobs=True)
    assert len(told.ids) == 1
    llm.engine.abort(5)
    for delta in llm.engine.step().deltas:
        told.take(delta, has_logprobs=True)
    assert (len(told.ids), told.reason) == (1, FinishReason.ABORTED)
    assert not llm.engine.has_work
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1


def test_forced_tokens_cost_no_row_of_the_head_without_logprobs(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for none has rows for drawn tokens alone; with logprobs each token has one."""
    model = llm.engine._runner.model
    compute, num_rows = model.logits, 0

    def counted(hidden: Any, **options: Any) -> Any:
        nonlocal num_rows
        num_rows += len(hidden)
        return compute(hidden, **options)

    monkeypatch.setattr(
        type(model), "logits", lambda _, hidden, **options: counted(hidden, **options)
    )
    params = SamplingParams(max_tokens=80, temperature=0.0, grammar=SURE)
    for logprobs, expected in ((None, 1), (0, len(llm.tokenizer.encode(ONLY)))):
        num_rows = 0
        run(llm, [Request(0, prompt_of(llm), replace(params, logprobs=logprobs))])
        assert num_rows == expected


@pytest.mark.slow
def test_demo_model_offline_gives_the_entries_of_transformers() -> None:
    """Choices, schema and calls, three choices of each, through `generate` and `chat`."""
    folder = model_store.pull("smollm2-135m")
    llm = LLM(folder, dtype="float32", device="cpu", num_threads=1, num_pages=200)
    scores = RawScores(folder)
    free = SamplingParams(n=3, max_tokens=40, temperature=1.0, seed=2, logprobs=2)
    grammars = (CHOICE, SURE, JSON)
    outputs = llm.generate(
        [PROMPT] * len(grammars), [replace(free, grammar=each) for each in grammars], progress=False
    )
    messages = [{"role": "user", "content": "Describe a shoe."}]
    outputs += llm.chat(messages, free, tools=[TOOL], tool_choice="describe", progress=False)
    for output in outputs:
        for choice in output.choices:
            entries = [(entry.logprob, entry.rank, entry.top) for entry in choice.logprobs]
            scores.check(output.prompt_ids, choice.token_ids, entries, 2)
            assert any(entry.forced for entry in choice.logprobs)
    assert all(entry.forced for entry in outputs[1].logprobs)
    assert any(choice.tool_calls for choice in outputs[3].choices)
    llm.close()
