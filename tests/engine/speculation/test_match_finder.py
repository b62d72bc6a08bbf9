"""The match finder: earlier occurrences found, old tokens forgotten, both ways of filing alike."""

from __future__ import annotations

from random import Random

from tokenbus.engine.speculation.match_finder import GAP, MAX_MATCH, RUN, MatchFinder


def brute_force(text: list[int], context: list[int]) -> int:
    """Return the length of the longest earlier occurrence of a context's end, by looking."""
    longest = 0
    for place in range(len(text) - 1):
        length = 0
        while (
            length < min(MAX_MATCH, len(context), place + 1)
            and text[place - length] == context[-1 - length]
        ):
            length += 1
        longest = max(longest, length)
    return longest


def test_longest_match_wins_over_a_later_shorter_one() -> None:
    """What follows is read behind the occurrence that has the most tokens in common."""
    finder = MatchFinder(64)
    finder.take([1, 2, 3, 4, 50, 9, 2, 3, 4, 60, 9])
    assert finder.guess([1, 2, 3, 4], 2) == ([50, 9], 4)
    assert finder.guess([8, 2, 3, 4], 2) == ([60, 9], 3 // 2), "the two disagree"


def test_latest_of_equal_matches_wins_undisputed_where_they_agree() -> None:
    """Two places that go on alike count in full."""
    finder = MatchFinder(64)
    finder.take([7, 1, 2, 3, 5, 5, 8, 1, 2, 3, 5, 6, GAP])
    assert finder.guess([0, 1, 2, 3], 3) == ([5, 6], 3)


def test_latest_pair_is_found_where_no_run_is() -> None:
    """Two tokens alike are a guess too, behind which something stands that is no gap."""
    finder = MatchFinder(64)
    finder.take([5, 1, 2, 30, 6, 1, 2, 40, 7, 1, 2, GAP, 8, 1, 2])
    assert finder.guess([9, 1, 2], 2) == ([40, 7], 2)
    assert finder.guess([1, 2], 1) == ([40], 2)
    assert finder.guess([9, 2, 1], 2) is None


def test_text_that_is_its_own_context_is_found_before_its_end() -> None:
    """The newest occurrence, behind which nothing stands, is passed over; a period goes on."""
    finder = MatchFinder(64)
    finder.take([1, 2, 3] * 4)
    guess = finder.guess([1, 2, 3] * 4, 7)
    assert guess is not None
    assert guess.token_ids == [1, 2, 3, 1, 2, 3, 1]


def test_gap_ends_what_is_read_and_is_never_matched() -> None:
    """A text does not run on into the one that was added after it."""
    finder = MatchFinder(64)
    finder.take([1, 2, 3, 4, GAP, 1, 2, 3, 4, GAP])
    assert finder.guess([1, 2, 3], 9) == ([4], 3)
    assert finder.guess([2, 3, 4], 9) is None


def test_erased_tokens_are_not_found_again() -> None:
    """Neither by a context nor by reading on from before them."""
    finder = MatchFinder(64)
    finder.take([1, 2, 3, 4, 5, 6])
    finder.erase(3, 6)
    assert finder.guess([1, 2, 3], 5) is None
    assert finder.guess([4, 5, 6], 5) is None


def test_tokens_past_the_capacity_are_forgotten_oldest_first() -> None:
    """A ring of 16 tokens knows nothing of the seventeenth newest."""
    finder = MatchFinder(16)
    finder.take([1, 2, 3, 4])
    finder.take(list(range(100, 114)))
    assert finder.start == 2
    assert finder.guess([1, 2, 3], 1) is None
    assert finder.guess([100, 101, 102], 2) == ([103, 104], 3)


def test_runs_filed_by_sort_and_by_loop_are_the_same() -> None:
    """A long run, whole, in pieces and over the end of the ring, leaves the same tables."""
    source = Random(5)
    text = [source.choice((GAP, *range(6))) for _ in range(700)]
    at_once, one_by_one, mixed = MatchFinder(256), MatchFinder(256), MatchFinder(256)
    at_once.take(text)
    for token_id in text:
        one_by_one.take([token_id])
    mixed.take(text[:5])
    mixed.take(text[5:230])
    mixed.take(text[230:235])
    mixed.take(text[235:])
    assert at_once.kept() == one_by_one.kept() == mixed.kept() == text[-256:]
    for _ in range(200):
        context = [source.randrange(6) for _ in range(5)]
        found = {finder.find(context) for finder in (at_once, one_by_one, mixed)}
        assert len(found) == 1, context


def test_match_is_as_long_as_any_among_the_latest() -> None:
    """Where no more than eight places share the last three tokens, the search misses nothing."""
    source = Random(11)
    text = [source.randrange(12) for _ in range(300)]
    finder = MatchFinder(512)
    finder.take(text)
    num_found = 0
    for _ in range(300):
        start = source.randrange(250)
        context = [*text[start : start + 6], source.randrange(12)]
        found, longest = finder.find(context), brute_force(text, context)
        length = 0 if found is None else found.length
        # Of two pairs with one hash the later one is filed.
        assert length == longest if longest >= RUN else length in (0, longest)
        num_found += found is not None
    assert num_found > 10
