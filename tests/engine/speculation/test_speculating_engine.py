"""The engine with its own drafts: the same texts, in fewer steps, and counts that add up."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine import LLM
from tokenbus.engine.speculation.planner import DraftPlanner
from tokenbus.engine.types import DraftCount, GrammarKind, GrammarSpec, Request, SamplingParams
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.engine import Engine

    Run = Callable[..., dict[tuple[int, int], Any]]

DRAWN = SamplingParams(max_tokens=40, temperature=1.0, seed=3)
ASKED = (
    DRAWN,
    replace(DRAWN, temperature=0.0),
    replace(DRAWN, top_p=0.9, top_k=40, logprobs=2),
    replace(DRAWN, n=2, presence_penalty=0.5),
    replace(DRAWN, stop_token_ids=tuple(range(0, 320, 9)), min_tokens=5),
)
SCHEMA = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "maxLength": 30},
        "size": {"enum": ["small", "medium", "large"]},
        "note": {"type": "string", "maxLength": 40},
        "in_stock": {"type": "boolean"},
    },
    "required": ["product", "in_stock"],
    "additionalProperties": False,
}


def let_rows_be_free(engine: Engine) -> DraftPlanner:
    """Let an engine draft whatever the machine's steps take."""
    assert engine._drafting is not None
    planner = engine._drafting.speculation
    assert isinstance(planner, DraftPlanner)
    for num_rows in (1, 512):
        planner.costs.measured(num_rows, 10.0)
    planner.measured = lambda *_: None  # type: ignore[method-assign] # steps are not to be timed
    return planner


def requests(prompts: list[tuple[int, ...]], first_id: int, group: str) -> list[Request]:
    """Ask the same of the engine again, under other numbers."""
    return [
        Request(first_id + number, prompts[number], params, cache_salt=group, lane="1:acme")
        for number, params in enumerate(ASKED)
    ]


def texts(answers: dict[tuple[int, int], Any]) -> list[list[int]]:
    """Return the ids of all choices, in order."""
    return [answer.token_ids for answer in answers.values()]


def test_texts_are_those_without_drafts_and_take_fewer_steps_the_second_time(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run
) -> None:
    """What a group has said before is drafted for it, not for another, and changes no token."""
    wanted = texts(run(tiny.engine(), requests(prompts, 0, "shop")))
    engine = tiny.engine(speculation="auto")
    let_rows_be_free(engine)
    steps, accepted = [], []
    for first_id, group in ((0, "shop"), (100, "shop"), (200, "other")):
        before = engine.stats()
        assert texts(run(engine, requests(prompts, first_id, group))) == wanted
        after = engine.stats()
        steps.append(after.decode_turns_total - before.decode_turns_total)
        accepted.append(dict(after.drafts_total)["pool_text"].accepted)
    assert steps[1] < 0.7 * steps[0]
    assert steps[2] > 0.9 * steps[0]
    assert accepted[1] == accepted[2] > accepted[0]


def test_counts_of_requests_add_up_to_those_of_the_engine(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run
) -> None:
    """The last delta of each choice has its own, and turns with right drafts make all tokens."""
    engine = tiny.engine(speculation="auto")
    let_rows_be_free(engine)
    deltas = [
        delta
        for first_id in (0, 100)
        for answer in run(engine, requests(prompts, first_id, "shop")).values()
        for delta in answer.deltas
    ]
    assert {delta.drafts for delta in deltas if delta.finish_reason is None} == {DraftCount()}
    stats = engine.stats()
    drafted = sum(delta.drafts.drafted for delta in deltas)
    accepted = sum(delta.drafts.accepted for delta in deltas)
    assert drafted == sum(count.drafted for _, count in stats.drafts_total)
    assert accepted == sum(count.accepted for _, count in stats.drafts_total)
    assert 100 < accepted <= drafted
    num_tokens = sum(len(delta.token_ids) for delta in deltas)
    num_choices = sum(delta.finish_reason is not None for delta in deltas)
    # The first token of each is drawn where its prompt ends; an end that was drafted has nothing
    # behind it.
    surplus = stats.decode_turns_total + accepted - (num_tokens - num_choices)
    assert 0 <= surplus <= num_choices


def test_engine_learns_answers_and_forgets_them(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run
) -> None:
    """What another worker has said is drafted here, until it is to be forgotten."""
    [request, *_] = requests(prompts, 0, "shop")
    [wanted] = texts(run(tiny.engine(), [request]))
    for is_forgotten in (False, True):
        engine = tiny.engine(speculation="auto")
        let_rows_be_free(engine)
        engine.learn_answer(-1, "shop", wanted)
        if is_forgotten:
            engine.drop_answers([-1])
        assert texts(run(engine, [request])) == [wanted]
        accepted = dict(engine.stats().drafts_total)["pool_text"].accepted
        assert (accepted > 20) is not is_forgotten


def test_engine_without_speculation_counts_and_keeps_nothing(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run
) -> None:
    """No drafter is asked, and answers that come from elsewhere are let go."""
    engine = tiny.engine()
    engine.learn_answer(-1, "shop", [1, 2, 3])
    engine.drop_answers([-1])
    run(engine, requests(prompts, 0, "shop"))
    assert engine.stats().drafts_total == ()
    assert engine.stats().decode_turns_total == 0


@pytest.mark.slow
def test_demo_model_says_the_same_with_drafts_in_schemas_and_free_text() -> None:
    """Twice over in fp32, drawn and greedy: the second time texts and forced tokens are drafted."""
    folder = model_store.pull("smollm2-135m")
    schema = GrammarSpec(GrammarKind.JSON_SCHEMA, json.dumps(SCHEMA))
    asked = [
        SamplingParams(max_tokens=60, temperature=temperature, seed=seed, grammar=grammar)
        for seed, temperature in ((1, 0.0), (2, 0.7), (3, 1.0))
        for grammar in (schema, None)
    ]
    found = {}
    for speculation in ("off", "auto"):
        llm = LLM(folder, dtype="float32", num_pages=300, max_num_seqs=8, speculation=speculation)
        ids = llm.tokenizer("Describe one product of an outdoor shop.\n")["input_ids"]
        if speculation == "auto":
            let_rows_be_free(llm.engine)
        rounds = []
        for first_id in (0, 100):
            answers: dict[int, list[int]] = {}
            for number, params in enumerate(asked):
                request = Request(first_id + number, ids, params, cache_salt="shop")
                llm.engine.add(request)
            while llm.engine.has_work:
                for delta in llm.engine.step().deltas:
                    number = delta.request_id - first_id
                    answers.setdefault(number, []).extend(delta.token_ids)
                llm.engine.check_integrity()
            rounds.append(answers)
        found[speculation] = rounds
        drafts = dict(llm.stats().drafts_total)
        llm.close()
    assert found["auto"] == found["off"]
    assert drafts["pool_text"].accepted > 100
    assert drafts["grammar"].accepted > 0
