"""Own text and pool text: what they propose, whom they share it with, and what they forget."""

from __future__ import annotations

from array import array

from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.speculation.match_finder import TOKEN_BYTES
from tokenbus.engine.speculation.own_text import OwnText
from tokenbus.engine.speculation.pool_text import LEAD_TOKENS, PoolText

PROMPT = [20, 21, 22, 23]


def view(
    key: int, token_ids: list[int], *, group: str = "shop", num_prompt: int = len(PROMPT)
) -> DraftView:
    """Return a sequence; its request has the number of its key."""
    return DraftView(key, group, array("i", token_ids), num_prompt, request_id=key)


def guessed(drafter: OwnText | PoolText, seq: DraftView, limit: int = 8) -> list[int]:
    """Return what a drafter proposes behind a sequence, with all answers filed."""
    while isinstance(drafter, PoolText) and drafter._waiting:
        drafter.file()
    guess = drafter.propose(seq, seq.token_ids[-16:], limit)
    return [] if guess is None else guess.token_ids


def num_bytes(pool: PoolText) -> int:
    """Count the bytes of all groups."""
    return sum(each.finder.capacity * TOKEN_BYTES for each in pool._groups.values())


def test_own_text_quotes_the_prompt() -> None:
    """A name that stands in the prompt is proposed once three of its tokens have come."""
    seq = view(1, [*range(100, 120), 102, 103, 104], num_prompt=20)
    assert guessed(OwnText(), seq, 4) == [105, 106, 107, 108]


def test_own_text_follows_a_sequence_that_grows() -> None:
    """Tokens that came since the last look are filed, past the first size of the text too."""
    own, tokens = OwnText(), array("i", [1, 2, 3])
    seq = DraftView(1, "", tokens, 3)
    assert guessed(own, seq) == []
    tokens.extend(range(1000, 3000))
    tokens.extend([1500, 1501, 1502])
    assert guessed(own, seq, 2) == [1503, 1504]


def test_own_text_of_an_ended_sequence_is_gone() -> None:
    """Nothing is kept of a sequence that was dropped."""
    own, seq = OwnText(), view(1, [1, 2, 3, 4, 1, 2, 3])
    assert guessed(own, seq, 1) == [4]
    own.drop(seq)
    assert own._finders == {}


def test_answer_is_proposed_to_its_group_alone() -> None:
    """Another group, and a sequence without one, are proposed nothing of it."""
    pool = PoolText(1 << 20)
    pool.drop(view(1, [*PROMPT, 30, 31, 32, 33]))
    later = [90, *PROMPT, 30, 31]
    assert guessed(pool, view(2, later, num_prompt=5)) == [32, 33]
    assert guessed(pool, view(3, later, group="other", num_prompt=5)) == []
    assert guessed(pool, view(4, later, group="", num_prompt=5)) == []


def test_answer_begins_like_the_last_one_behind_the_same_end_of_prompt() -> None:
    """The end of the prompt is kept with an answer; no more of the prompt than that is."""
    pool = PoolText(1 << 20)
    prompt = list(range(200, 200 + LEAD_TOKENS + 4))
    pool.drop(view(1, [*prompt, 30, 31], num_prompt=len(prompt)))
    assert guessed(pool, view(2, [9, *prompt[-3:]], num_prompt=4)) == [30, 31]
    assert guessed(pool, view(3, prompt[:4], num_prompt=4)) == []


def test_sequence_without_a_group_leaves_nothing() -> None:
    """What has no group is kept for nobody."""
    pool = PoolText(1 << 20)
    pool.drop(view(1, [*PROMPT, 30, 31, 32], group=""))
    assert num_bytes(pool) == 0


def test_all_choices_of_a_forgotten_request_are_gone() -> None:
    """Both answers go, filed or not, and those of other requests stay."""
    for is_filed in (False, True):
        pool = PoolText(1 << 20)
        pool.drop(view(1, [*PROMPT, 30, 31, 32]))
        pool.drop(view(1, [*PROMPT, 40, 41, 42]))
        pool.drop(view(2, [*PROMPT, 50, 51, 52]))
        if is_filed:
            pool.file()
        pool.erase([1, 99])
        for token_id, proposed in ((30, []), (40, []), (50, [51, 52])):
            assert guessed(pool, view(3, [*PROMPT, token_id])) == proposed


def test_answers_that_wait_to_be_filed_are_few_and_are_filed_a_few_at_a_time() -> None:
    """Hundreds that end at once leave the newest of them, which no plan has to file alone."""
    pool = PoolText(1 << 20)
    for number in range(300):
        pool.drop(view(number, [*PROMPT, 30, 31, 32]))
    num_plans = 0
    while pool._waiting:
        before = len(pool._waiting)
        pool.file()
        num_plans += 1
        assert before - len(pool._waiting) <= 8
    assert 20 < num_plans < 40
    assert list(pool._groups["shop"].places) == list(range(300 - 256, 300))


def test_group_is_bounded_in_bytes_and_forgets_its_oldest_answers() -> None:
    """A group of many answers takes what it may, and remembers the newest of them."""
    most = 1 << 18
    pool = PoolText(most)
    num_answers = 2 * most // TOKEN_BYTES // 100
    for number in range(num_answers):
        first = 1000 * number
        pool.add(number, "shop", list(range(first, first + 100)))
    assert most // 4 < num_bytes(pool) <= most
    assert guessed(pool, view(9, [0, 1, 2, 3])) == []
    newest = 1000 * (num_answers - 1)
    assert guessed(pool, view(9, list(range(newest, newest + 4))), 1) == [newest + 4]
    answers = pool._groups["shop"]
    assert len(answers.places) == len(answers.order) < num_answers


def test_answers_stay_where_they_are_while_a_group_grows() -> None:
    """An early answer is found, and forgotten, after the group has taken more room."""
    pool = PoolText(1 << 22)
    for number in range(200):
        first = 1000 * number
        pool.add(number, "shop", list(range(first, first + 100)))
    seq = view(9, [3000, 3001, 3002])
    assert guessed(pool, seq, 2) == [3003, 3004]
    pool.erase([3])
    assert guessed(pool, seq, 2) == []


def test_groups_are_bounded_in_number() -> None:
    """The group goes that nothing was added to for the longest time."""
    pool = PoolText(1 << 16)
    for number in range(70):
        pool.add(number, f"tenant {number}", [1, 2, 3, 4, 5])
        pool.add(1000 + number, "tenant 0", [1, 2, 3, 4, 5])
    assert len(pool._groups) == 64
    assert guessed(pool, view(9, [1, 2, 3], group="tenant 0"), 1) == [4]
    assert guessed(pool, view(9, [1, 2, 3], group="tenant 1"), 1) == []
