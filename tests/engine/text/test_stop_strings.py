"""Stop strings: what is released, what is held, what wins."""

from __future__ import annotations

import random

import pytest

from tokenbus.engine.text.stop_strings import StopStrings


def test_stop_string_across_tokens_is_never_published() -> None:
    """Nothing of the stop string or behind it is released, though it spans three tokens."""
    watch = StopStrings(["</end>"])
    assert watch.push(["Hello", " <", "b></"]).texts == ("Hello", " ", "<b>")
    scan = watch.push(["en", "d> more", " text"])
    assert scan.texts == ("", "")
    assert scan.matched == "</end>"


def test_included_stop_string_ends_the_text() -> None:
    """With `include` the string is kept and what follows it is not."""
    watch = StopStrings(["\n\n"], include=True)
    scan = watch.push(["one\n", "\ntwo"])
    assert "".join(scan.texts) == "one\n\n"
    assert scan.matched == "\n\n"


def test_stop_completed_first_wins_and_ties_go_by_list_order() -> None:
    """Of two strings in the same step the earlier completion decides; then the list."""
    assert StopStrings(["long stop", "stop"]).push(["a long stop"]).matched == "long stop"
    assert StopStrings(["stop", "long stop"]).push(["a long stop"]).matched == "stop"
    assert StopStrings(["c d", "b"]).push(["a b c d"]).matched == "b"
    included = StopStrings(["stop", "long stop"], include=True).push(["a long stop!"])
    assert included.texts == ("a long stop",)
    excluded = StopStrings(["long stop", "stop"]).push(["a long stop!"])
    assert excluded.texts == ("a ",)


def test_only_a_possible_beginning_is_held_back() -> None:
    """Text is held exactly as long as it could still become a stop string."""
    watch = StopStrings(["aab"])
    assert watch.push(["x", "a", "a", "a", "a", "c"]).texts == ("x", "", "", "a", "a", "aac")
    assert watch.push(["aa"]).texts == ("",)
    assert watch.flush() == "aa"
    assert watch.flush() == ""


def test_tokens_behind_the_match_are_dropped() -> None:
    """A stop token, or anything else, in the same step behind the string is not counted."""
    scan = StopStrings(["."]).push(["Done", ".", " <eos>"])
    assert len(scan.texts) == 2
    assert scan.matched == "."


def test_stop_before_min_tokens_is_ordinary_text() -> None:
    """A string completed within the first min_tokens tokens does not end the choice."""
    watch = StopStrings(["ab"], min_tokens=3)
    assert watch.push(["ab", "a", "b", "c"]) == type(watch.push([]))(("ab", "", "ab", "c"))
    assert watch.push(["xab"]).matched == "ab"
    straddling = StopStrings(["ab"], min_tokens=1)
    assert straddling.push(["xa", "b"]).matched == "ab"


def test_no_stop_strings_release_everything_at_once() -> None:
    """Without strings, and with empty ones, nothing is held."""
    assert StopStrings([]).push(["a", "", "b"]).texts == ("a", "", "b")
    assert StopStrings([""]).push(["a"]).texts == ("a",)


@pytest.mark.parametrize("include", [False, True])
@pytest.mark.parametrize("seed", range(150))
def test_scan_equals_a_search_in_the_whole_text(seed: int, include: bool) -> None:
    """For random texts, cuts and strings the result is that of a search in the joined text."""
    rng = random.Random(seed)
    text = "".join(rng.choice("ab") for _ in range(40))
    stops = ["".join(rng.choice("abc") for _ in range(rng.randint(1, 6))) for _ in range(3)]
    cuts = sorted(rng.randint(0, 40) for _ in range(12))
    pieces = [text[low:high] for low, high in zip([0, *cuts], [*cuts, 40], strict=True)]
    found = [(text.find(stop) + len(stop), n) for n, stop in enumerate(stops) if stop in text]
    watch = StopStrings(stops, include)
    published = ""
    for number, piece in enumerate(pieces):
        scan = watch.push([piece])
        published += scan.texts[0]
        so_far = "".join(pieces[: number + 1])
        if scan.matched is not None:
            end, first = min(found)
            assert scan.matched == stops[first]
            assert published == text[: end if include else end - len(stops[first])]
            return
        assert not any(stop in so_far for stop in stops)
        held = so_far[len(published) :]
        assert so_far.startswith(published)
        assert not held or any(stop.startswith(held) for stop in stops)
        beginnings = [stop[:k] for stop in stops for k in range(1, len(stop))]
        assert len(held) == max((len(b) for b in beginnings if so_far.endswith(b)), default=0)
    assert not found
    assert published + watch.flush() == text
