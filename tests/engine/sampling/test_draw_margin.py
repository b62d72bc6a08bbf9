"""The margin of a draw, as the benchmark of identity tells it, to borders of tokens and filters."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

LOGITS = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()


@pytest.fixture(scope="module")
def margin_of() -> Callable[..., tuple[float, bool]]:
    """Give the function of the benchmark."""
    path = Path(__file__).parents[3] / "benchmarks" / "draw_margin.py"
    found: Callable[..., tuple[float, bool]] = runpy.run_path(str(path))["margin_of"]
    return found


@pytest.mark.parametrize(
    ("filters", "at", "token_id", "size", "by_filter"),
    [
        pytest.param({}, 0.55, 1, 0.0, False, id="drawn"),
        pytest.param({}, 0.55, 0, 0.05, False, id="border"),
        pytest.param({}, 0.55, 3, 0.4, False, id="far"),
        # Two tokens are kept, with their border at 0.625; a third moves it to 0.526.
        pytest.param({"top_p": 0.79}, 0.55, 0, 0.0, False, id="nucleus-drawn"),
        pytest.param({"top_p": 0.79}, 0.55, 1, 0.01, True, id="nucleus-grows"),
        pytest.param({"top_p": 0.81}, 0.55, 0, 0.01, True, id="nucleus-shrinks"),
        pytest.param({"min_p": 0.31}, 0.55, 1, 0.005, True, id="min-p-grows"),
        pytest.param({"min_p": 0.29}, 0.55, 0, 0.005, True, id="min-p-shrinks"),
        pytest.param({"top_k": 1}, 0.55, 1, 0.2, True, id="top-k-swaps"),
    ],
)
def test_margin_is_the_least_that_has_to_move(
    margin_of: Callable[..., tuple[float, bool]],
    filters: dict[str, float],
    at: float,
    token_id: int,
    size: float,
    by_filter: bool,
) -> None:
    """By hand: a border between tokens, or the one of a filter that moves it."""
    params = SamplingParams(temperature=1.0, **filters)  # type: ignore[arg-type] # top_k is an int
    found = margin_of(LOGITS, params, at, token_id)
    assert found == (pytest.approx(size, abs=1e-6), by_filter)


def test_margin_of_a_greedy_token_is_one_of_logits(
    margin_of: Callable[..., tuple[float, bool]],
) -> None:
    """The best token has none; another one lacks the difference."""
    params = SamplingParams(temperature=0.0)
    assert margin_of(LOGITS, params, 0.9, 0) == (0.0, False)
    assert margin_of(LOGITS, params, 0.9, 1) == (pytest.approx(0.5108256), False)
