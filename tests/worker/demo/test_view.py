"""The pictures of the demo, drawn into a string."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tokenbus.worker.demo.view import Answer, BusState, LiveView, PlainView, draw_seats


def _state() -> BusState:
    answers = [Answer("support", "q", text=f"answer {i}", started=True) for i in range(3)]
    answers += [Answer("content", "q") for _ in range(2)]
    answers[0].ended = True
    state = BusState(answers, num_pages=100, pages_in_use=30, pages_cached=10, num_running=2)
    state.num_tokens = 42
    return state


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    out = io.StringIO()
    return Console(file=out, force_terminal=terminal, width=80, height=30), out


def test_plain_view_prints_one_line_without_control_codes() -> None:
    """A log gets one self-contained line per picture."""
    console, out = _console(terminal=False)
    with PlainView(console) as view:
        view.show(_state())
    lines = out.getvalue().splitlines()
    assert len(lines) == 1
    assert "\x1b" not in lines[0]
    for part in ("2 on board", "2 waiting", "1/5 done", "pages 30/100", "42 tokens"):
        assert part in lines[0]


def test_live_view_shows_seats_counters_and_growing_answers() -> None:
    """The panel fits 80 columns, names who rides and waits, and shows what is being written."""
    console, out = _console(terminal=True)
    with LiveView(console, "tokenbus") as view:
        view.show(_state())
    drawn = out.getvalue()
    for part in ("tokenbus", "on board", "at the stop", "answer 1", "answer 2", "■", "30 taken"):
        assert part in drawn


def test_live_view_does_not_obey_what_a_model_writes() -> None:
    """Control characters in an answer do not reach the terminal."""
    console, out = _console(terminal=True)
    state = _state()
    state.answers[1].text = "red\x1b[2Jtext\x07"
    with LiveView(console, "tokenbus") as view:
        view.show(state)
    assert "\x1b[2J" not in out.getvalue()
    assert "\x07" not in out.getvalue()


@pytest.mark.parametrize(
    ("num_pages", "in_use", "cached"),
    [(0, 0, 0), (1, 1, 0), (50, 50, 0), (50, 1, 49), (9000, 1, 1)],
)
def test_seats_fill_with_pages(num_pages: int, in_use: int, cached: int) -> None:
    """Taken, kept and free seats add up, and a single page is already seen."""
    state = BusState([], num_pages=num_pages, pages_in_use=in_use, pages_cached=cached)
    seats = draw_seats(state).plain.replace("\n", "")
    if not num_pages:
        assert "■" not in seats
        return
    assert len(seats) == min(num_pages, 216)
    assert seats.count("■") >= (in_use > 0)
    assert ("·" in seats) == (in_use + cached < num_pages)


def test_rate_covers_the_last_two_seconds() -> None:
    """The rate follows the present: tokens of long ago no longer count."""
    state = BusState([])
    for elapsed_s, num_tokens in ((0.0, 0), (1.0, 1000), (3.0, 1020), (5.0, 1060)):
        state.num_tokens = num_tokens
        state.advance(elapsed_s)
    assert state.tokens_per_s == 20.0
