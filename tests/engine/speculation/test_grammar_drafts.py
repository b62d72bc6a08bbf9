"""Drafts under grammars: equal to the run without, forced tokens and their entries included."""

from __future__ import annotations

import json
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread, get_ident
from typing import TYPE_CHECKING, Any

import pytest
from models.scheduler_bench import Optimist
from models.scripted_drafts import ScriptedSpeculation
from models.tiny_model import TinyModel

from tokenbus.engine import LLM
from tokenbus.engine.execution.drafting import Drafting
from tokenbus.engine.grammar.grammar import GrammarMatcher
from tokenbus.engine.speculation.planner import DraftPlanner
from tokenbus.engine.types import GrammarKind, GrammarSpec, Request, SamplingParams
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from tokenbus.engine.types import TokenDelta

SCHEMA = {
    "type": "object",
    "properties": {
        "product_name": {"type": "string", "maxLength": 8},
        "in_stock": {"type": "boolean"},
        "colours": {"type": "array", "items": {"enum": ["red", "blue"]}, "maxItems": 3},
    },
    "required": ["product_name", "in_stock", "colours"],
    "additionalProperties": False,
}
JSON = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
OPEN = GrammarSpec(
    GrammarKind.JSON_SCHEMA, '{"type": "object", "additionalProperties": {"type": "boolean"}}'
)
CHOICE = GrammarSpec(GrammarKind.CHOICE, '["dark green is the colour", "dark blue", "red"]')
PATTERN = GrammarSpec(GrammarKind.REGEX, "[A-Z]{2}-[0-9]{4} and [a-z ]{3,}")
DRAWN = SamplingParams(max_tokens=70, temperature=1.2)
ASKED = [
    replace(DRAWN, grammar=JSON, n=3, repetition_penalty=1.2),
    replace(DRAWN, grammar=JSON, logprobs=2, n=2),
    replace(DRAWN, grammar=JSON, max_tokens=23, top_p=0.9),
    replace(DRAWN, grammar=OPEN, logit_bias={70: 2.0}),
    replace(DRAWN, grammar=CHOICE),
    replace(DRAWN, grammar=CHOICE, min_tokens=9, logprobs=0),
    replace(DRAWN, grammar=PATTERN, bad_words=((100,), (101, 102))),
    replace(DRAWN, grammar=PATTERN, max_tokens=18),
    replace(DRAWN, max_tokens=20, presence_penalty=0.5),
]

Answers = dict[tuple[int, int], list["TokenDelta"]]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Save a tiny model of bytes, under which a forced run has many tokens."""
    return TinyModel(tmp_path_factory.mktemp("tiny"))


def made(tiny: TinyModel, **settings: Any) -> LLM:
    """Build an engine around the tiny model."""
    chosen = {"num_pages": 400, "page_size": 4} | settings
    return LLM(tiny.folder, dtype="float32", device="cpu", num_threads=1, **chosen)


def run(llm: LLM, requests: list[Request]) -> Answers:
    """Run requests to their ends."""
    answers: Answers = {}
    for request in requests:
        llm.engine.add(request)
    while llm.engine.has_work:
        for delta in llm.engine.step().deltas:
            answers.setdefault((delta.request_id, delta.choice), []).append(delta)
        llm.engine.check_integrity()
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    return answers


def told(deltas: list[TokenDelta]) -> tuple[Any, ...]:
    """Return what an answer says, but for the values of log-probabilities."""
    ids = [token_id for delta in deltas for token_id in delta.token_ids]
    entries = [entry for delta in deltas for entry in delta.logprobs]
    last = deltas[-1]
    marks = [(entry.token_id, entry.rank, entry.forced) for entry in entries]
    return ids, marks, last.finish_reason, last.stop_token_id, last.error


def check_same(wanted: Answers, found: Answers) -> None:
    """Compare answers, log-probabilities within rounding."""
    assert set(found) == set(wanted)
    for key, deltas in wanted.items():
        assert told(found[key]) == told(deltas), key
        pairs = zip(
            (entry.logprob for delta in deltas for entry in delta.logprobs),
            (entry.logprob for delta in found[key] for entry in delta.logprobs),
            strict=True,
        )
        assert all(abs(one - other) < 1e-4 for one, other in pairs)


def requests_of(llm: LLM) -> list[Request]:
    """Return a batch of all that is asked."""
    ids = tuple(llm.tokenizer.encode("describe a parcel to me"))
    return [Request(idx, ids, replace(params, seed=idx)) for idx, params in enumerate(ASKED)]


def texts_of(requests: list[Request], answers: Answers) -> list[list[int]]:
    """Return prompt and output of each choice."""
    return [[*requests[idx].prompt_ids, *told(deltas)[0]] for (idx, _), deltas in answers.items()]


def speculate(llm: LLM, texts: list[list[int]], wrong_in: int = 2) -> ScriptedSpeculation:
    """Let an engine draft from known texts."""
    engine = llm.engine
    speculation = ScriptedSpeculation(texts, most=8, vocab_size=300, wrong_in=wrong_in)
    engine._drafting = Drafting(speculation, engine._constrained)
    return speculation


@pytest.fixture(scope="module")
def recorded(tiny: TinyModel) -> tuple[list[Request], Answers]:
    """Return requests and what they get without drafts."""
    llm = made(tiny)
    requests = requests_of(llm)
    answers = run(llm, requests)
    llm.close()
    return requests, answers


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
@pytest.mark.parametrize("settings", [{}, {"num_pages": 40}], ids=["roomy", "tight"])
def test_constrained_answers_are_those_of_the_run_without_drafts(
    tiny: TinyModel,
    recorded: tuple[list[Request], Answers],
    settings: dict[str, Any],
    ahead: bool,
) -> None:
    """Schemas, choices and patterns, wrong drafts among right ones, preempted in mid-run."""
    requests, wanted = recorded
    llm = made(tiny, **settings)
    llm.engine._one_step_ahead = ahead
    if settings:
        llm.engine._scheduler.estimator = Optimist()
    speculation = speculate(llm, texts_of(requests, wanted))
    check_same(wanted, run(llm, requests))
    assert speculation.num_right > 60
    assert speculation.num_wrong_drafts > 3
    if settings:
        assert llm.stats().preemptions_total
    llm.close()


def test_no_step_waits_for_masks_of_drafts_that_do_not_come(
    tiny: TinyModel, recorded: tuple[list[Request], Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows draw the one token whose mask is there, and say the same."""
    requests, wanted = recorded
    llm = made(tiny)
    speculation = speculate(llm, texts_of(requests, wanted))
    preparer = llm.engine._constrained._ready_preparer()
    begin, withheld = preparer.begin, list[Any]()

    def begin_some(work: Any, tenant: str, priority: int) -> Any:
        if getattr(work, "__name__", "") != "make":
            return begin(work, tenant, priority)
        withheld.append(work)
        return Future[None]()

    monkeypatch.setattr(preparer, "begin", begin_some)
    found: list[Answers] = []
    thread = Thread(target=lambda: found.append(run(llm, requests)), daemon=True)
    thread.start()
    thread.join(60)
    assert found, "a step waits"
    check_same(wanted, found[0])
    assert speculation.num_drafted
    assert withheld
    llm.close()


def test_the_engine_asks_no_grammar_for_masks_or_forced_tokens(
    tiny: TinyModel, recorded: tuple[list[Request], Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along drafts too, other threads do all that a grammar may make long."""
    requests, wanted = recorded
    llm = made(tiny, speculation="auto")
    assert llm.engine._drafting is not None
    planner = llm.engine._drafting.speculation
    assert isinstance(planner, DraftPlanner)
    for num_rows in (1, 512):
        planner.costs.measured(num_rows, 10.0)
    monkeypatch.setattr(planner, "measured", lambda *_: None)
    threads: list[tuple[str, int]] = []

    def noted(name: str) -> None:
        work = getattr(GrammarMatcher, name)

        def note(matcher: GrammarMatcher, *args: Any) -> Any:
            threads.append((name, get_ident()))
            return work(matcher, *args)

        monkeypatch.setattr(GrammarMatcher, name, note)

    for name in ("mask", "forced_tokens", "allows"):
        noted(name)
    check_same(wanted, run(llm, requests))
    assert dict(llm.stats().drafts_total)["grammar"].accepted
    assert {name for name, _ in threads} == {"mask", "forced_tokens", "allows"}
    assert get_ident() not in {ident for _, ident in threads}
    llm.close()


@pytest.mark.slow
def test_demo_model_says_the_same_with_drafts() -> None:
    """Tokens of many bytes, which a grammar forces in one spelling of several: all count as right.

    In float32 no two tokens are near enough to a tie for the order of a sum to decide.
    """
    folder = model_store.pull("smollm2-135m")
    llm = LLM(folder, dtype="float32", device="cpu", num_threads=1, num_pages=400)
    ids = tuple(llm.tokenizer.encode("Describe one product of an outdoor shop.\n"))
    drawn = replace(DRAWN, max_tokens=48, temperature=1.0)
    asked = [
        replace(drawn, grammar=JSON, n=2, logprobs=2),
        replace(drawn, grammar=JSON, temperature=0.0, frequency_penalty=0.3),
        replace(drawn, top_p=0.9, top_k=50, min_p=0.01, repetition_penalty=1.1, n=3),
        replace(drawn, temperature=0.0, logprobs=1),
    ]
    requests = [Request(idx, ids, replace(each, seed=idx)) for idx, each in enumerate(asked)]
    wanted = run(llm, requests)
    for wrong_in in (3, 10**9):
        speculation = speculate(llm, texts_of(requests, wanted), wrong_in)
        check_same(wanted, run(llm, requests))
        assert speculation.num_right > 100
        assert (speculation.num_right < speculation.num_drafted) == (wrong_in == 3)
    llm.close()
