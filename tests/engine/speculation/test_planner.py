"""The planner: the most promising source, as many tokens as pay, and what it learns from."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count, cycle, islice
from typing import TYPE_CHECKING

import pytest

from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.speculation.planner import MAX_DRAFT, DraftPlanner

if TYPE_CHECKING:
    from collections.abc import Iterable

PHRASE = list(range(100, 120))


def planner(*times: tuple[int, float], plan_s: float = 40e-6) -> DraftPlanner:
    """Return a planner that knows what steps cost; rows are free unless something is given.

    A plan takes it `plan_s` by its clock.
    """
    made = DraftPlanner(1 << 20, clock=partial(next, count(0.0, plan_s)))
    for num_rows, seconds in times or ((1, 0.010), (512, 0.010)):
        for _ in range(5):
            made.measured(num_rows, seconds)
    return made


class Text:
    """A sequence that a test lets grow."""

    def __init__(self, key: int, token_ids: Iterable[int], group: str = "shop") -> None:
        self.ids = array("i", token_ids)
        self.view = DraftView(key, group, self.ids, len(self.ids), lane="1:acme", request_id=key)


class Walk:
    """A grammar of one text, a list of the tokens that each place allows."""

    def __init__(self, places: list[set[int]]) -> None:
        self.places = places
        self.at = 0

    def forced(self) -> list[int]:
        """Return what has no alternative."""
        found: list[int] = []
        for allowed in self.places[self.at :]:
            if len(allowed) != 1:
                break
            found += allowed
        return found

    def likely(self) -> list[int]:
        """Return what may come next, where that is a word of the schema: from 1000 on."""
        here = self.places[self.at] if self.at < len(self.places) else set()
        return sorted(token_id for token_id in here if token_id >= 1000)

    def accept(self, token_id: int) -> bool:
        """Walk on."""
        if self.at >= len(self.places) or token_id not in self.places[self.at]:
            return False
        self.at += 1
        return True


def drafts_of(made: DraftPlanner, *texts: Text) -> dict[int, list[int]]:
    """Return what a planner drafts for texts."""
    return made.plan([text.view for text in texts])


def constrained(text: Text, walk: Callable[[], Walk]) -> DraftView:
    """Return the view of a text inside a grammar."""
    view = text.view
    return DraftView(
        view.key, view.group, view.token_ids, view.num_prompt, walk, view.lane, view.request_id
    )


def test_draft_goes_on_as_the_text_did_before() -> None:
    """A phrase of the prompt is drafted as far as the longest draft goes, if that is likely."""
    text = Text(1, [*PHRASE, 7, *PHRASE[:12]])
    assert drafts_of(planner(), text) == {1: [*PHRASE[12:], 7, *PHRASE][:MAX_DRAFT]}
    unlikely = Text(2, [*PHRASE, 7, *PHRASE[:3]])
    draft = drafts_of(planner(), unlikely)[2]
    assert draft == PHRASE[3 : 3 + len(draft)]
    assert 4 < len(draft) < MAX_DRAFT


def test_sequence_that_says_something_new_gets_no_draft() -> None:
    """Nothing is drafted where nothing was found."""
    assert drafts_of(planner(), Text(1, range(50))) == {}


def test_longer_match_wins_whichever_source_has_it() -> None:
    """The pool's answer goes on from six tokens alike, the prompt from three."""
    made = planner()
    made.pool.add(9, "shop", [*PHRASE[:8], 1, 2, 3])
    text = Text(1, [*PHRASE[5:8], 4, 5, 6, *PHRASE[2:8]])
    assert drafts_of(made, text)[1][:3] == [1, 2, 3]
    assert drafts_of(made, Text(2, text.ids, group="other"))[2][:3] == [4, 5, 6]


def test_costly_rows_shorten_drafts_and_dear_ones_end_them() -> None:
    """As rows get dearer, drafts get shorter, until there are none."""
    lengths = []
    for row_ms in (0.0, 1.0, 2.0, 8.0):
        made = planner(*((rows, 0.010 + row_ms / 1000 * (rows - 1)) for rows in (1, 2, 4, 8, 16)))
        drafts = drafts_of(made, Text(1, [*PHRASE, 7, *PHRASE[:12]]))
        lengths.append(len(drafts.get(1, ())))
    assert lengths[0] == MAX_DRAFT
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[-1] == 0
    assert len(set(lengths)) > 2, lengths


def test_rows_go_to_the_likelier_draft() -> None:
    """Of two sequences the one with the longer match gets more rows."""
    made = planner(*((rows, 0.010 + 0.001 * (rows - 2)) for rows in (2, 3, 4, 6, 8, 16, 32)))
    sure, unsure = Text(1, [*PHRASE, 7, *PHRASE[:16]]), Text(2, [*PHRASE, 7, *PHRASE[:3]])
    drafts = drafts_of(made, sure, unsure)
    assert len(drafts[1]) > len(drafts.get(2, ()))


def test_source_that_is_wrong_again_and_again_is_not_believed() -> None:
    """Drafts that never come true end, verified or not; when they come true, they return."""
    made = planner((1, 0.010), (2, 0.0125), (4, 0.016), (16, 0.040))
    made.pool.add(0, "shop", PHRASE)

    def is_drafted(key: int, follows: int) -> bool:
        text = Text(key, [500 + key, *PHRASE[4:7]])
        drafts = drafts_of(made, text)
        text.ids.append(follows)
        drafts_of(made, text)
        return bool(drafts)

    num_rounds = 1
    while is_drafted(num_rounds, 900):
        num_rounds += 1
        assert num_rounds < 100
    assert num_rounds > 3
    assert not is_drafted(100, 900)
    assert any(is_drafted(key, PHRASE[7]) for key in range(101, 200))


def test_grammar_cuts_what_it_forbids_and_adds_what_it_forces() -> None:
    """The text's value, then the forced key, then the text goes on where the key led to."""
    text = Text(1, [*PHRASE, 30, 31, 32, 60, 61, 62, 7, *PHRASE[:4]])
    places = [{104, 1}, {105, 2}, {30}, {31}, {32}, {60, 3}, {61, 4}, {5, 6}]
    made = planner()
    drafts = made.plan([constrained(text, lambda: Walk(places))])
    assert drafts == {1: [104, 105, 30, 31, 32, 60, 61]}
    made.report(1, drafts[1], 7)
    assert made.drafted_total == {"own_text": 4, "grammar": 3}


def test_next_word_of_a_schema_is_drafted_where_no_text_knows_more() -> None:
    """The first key that may come, what it forces, and no word where a text is free."""
    text = Text(1, range(50))
    places = [{1001, 1002}, {30}, {31}, {5, 6}]
    assert planner().plan([constrained(text, lambda: Walk(places))]) == {1: [1001, 30, 31]}
    assert planner().plan([constrained(text, lambda: Walk(places[3:]))]) == {}


def test_report_counts_by_who_drafted_each_token() -> None:
    """Those up to the first wrong one are accepted; what the engine added is the grammar's."""
    made = planner()
    text = Text(1, [*PHRASE, 7, *PHRASE[:4]])
    draft = drafts_of(made, text)[1]
    made.report(1, [*draft, 900, 901], len(draft) + 1)
    made.report(1, draft[:4], 1)
    assert made.drafted_total == {"own_text": len(draft) + 4, "grammar": 2}
    assert made.accepted_total == {"own_text": len(draft) + 1, "grammar": 1}


def test_ended_sequence_leaves_its_answer_to_its_group() -> None:
    """The next sequence of the group is drafted from it."""
    made = planner()
    first = Text(1, [1, 2, 3])
    first.ids.extend(PHRASE)
    made.drop(first.view)
    assert drafts_of(made, Text(2, PHRASE[:5]))[2] == PHRASE[5:]
    assert made._drafts.keys() == {2}


@pytest.mark.parametrize(
    ("step_s", "ids", "num_without"),
    [
        pytest.param(0.010, [*range(50)], 0, id="quick-for-nothing"),
        pytest.param(90e-6, [*range(50)], 44, id="long-for-nothing"),
        pytest.param(90e-6, PHRASE + PHRASE[:5], 0, id="long-for-much"),
    ],
)
def test_plans_that_take_longer_than_they_save_are_made_rarely(
    step_s: float, ids: list[int], num_without: int
) -> None:
    """What a wasted plan took, 40 us for a sequence, is a hundredth of the steps that follow it."""
    made = planner((1, step_s), (512, step_s))
    drafts_of(made, Text(0, ids))
    assert next(number for number in range(1000) if made.pays(1)) == num_without


@pytest.mark.parametrize(("plan_s", "is_asked"), [(100e-6, True), (400e-6, False)])
def test_plans_count_for_what_they_take(plan_s: float, is_asked: bool) -> None:
    """Inside a grammar a plan takes longer; where it finds nothing, it is made rarely then."""
    made = planner((1, 0.001), (512, 0.001), plan_s=plan_s)
    for key in range(60):
        drafts_of(made, Text(key, range(50)))
    assert made.pays(1) == is_asked


@pytest.mark.parametrize(("num_new", "is_drafted"), [(1, True), (4, False)])
def test_tokens_that_come_without_drafts_are_no_gain(num_new: int, is_drafted: bool) -> None:
    """A row costs 0.4 steps: more than a token is worth where a step brings four anyway."""
    made = planner(*((rows, 0.010 + 0.004 * (rows - 1)) for rows in (1, 2, 4, 8, 16)))
    follows = cycle(PHRASE)
    text = Text(1, islice(follows, 3 * len(PHRASE)))
    view = constrained(text, lambda: Walk([set(PHRASE)] * MAX_DRAFT))
    for _ in range(60):
        draft = made.plan([view]).get(1, [])
        text.ids.extend(islice(follows, len(draft) + num_new))
    assert bool(made.plan([view])) == is_drafted


def test_tokens_of_steps_without_a_plan_are_not_taken_for_those_of_one() -> None:
    """Plans that are made rarely see many tokens come, one a step: drafts have to beat one."""
    made = planner(*((rows, 90e-6 * (1 + 0.4 * (rows - 1))) for rows in (1, 2, 4, 8, 16)))
    text, others = Text(1, range(2000, 2050)), count(3000)
    wrong = constrained(text, lambda: Walk([{1001, 1002}]))
    for _ in range(30):
        made.plan([wrong])
        text.ids.append(next(others))
        while not made.pays(1):
            text.ids.append(next(others))
    again = Text(2, islice(cycle(PHRASE), 3 * len(PHRASE)))
    assert made.plan([constrained(again, lambda: Walk([set(PHRASE)] * MAX_DRAFT))])


def test_nobody_is_asked_where_a_plan_would_take_half_a_step() -> None:
    """What hundreds of sequences would have to say is not worth the time of a short step."""
    made = planner()
    assert made.pays(100)
    assert not made.pays(200)


def test_draft_inside_a_grammar_that_is_late_is_given_up() -> None:
    """Nothing waits for it, and the sequence is not asked for another for a number of steps."""
    text, begun = Text(1, [*PHRASE, 7, *PHRASE[:12]]), list[Callable[[], None]]()
    walk = Walk([set(PHRASE)] * MAX_DRAFT)
    view = replace(constrained(text, lambda: walk), beside=begun.append)
    made = planner()
    for _ in range(20):
        assert made.pays(1)
        assert made.plan([view]) == {}
    [work] = begun
    work()
    assert made.plan([view]) == {}
    assert walk.at == 0
    view = replace(constrained(Text(2, text.ids), lambda: walk), beside=lambda work: work())
    assert made.plan([view])
