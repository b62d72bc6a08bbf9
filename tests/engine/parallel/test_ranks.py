"""Ranks answer as one: the same tokens, the same bits on all of them, with all that requests ask."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.engine_of_ranks import GREEDY, answers, asked, engine, saved
from models.rank_threads import follow_in_threads

from tokenbus.engine.build import build_engine
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tokenbus.engine.engine import Engine

FAMILIES = (
    "llama-mha-bias-tied",
    "mistral-window",
    "qwen2-mixed-windows",
    "qwen3",
    "gemma2",
    "phi3-partial-rotary",
    "granite",
    "smollm3-nope",
    "qwen3_moe",
    "qwen2_moe",
    "granitemoeshared",
)

@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """Start followers as threads; the logits that each rank computed."""
    return follow_in_threads(monkeypatch)


def assert_bit_equal(logits: dict[int, list[Tensor]], size: int) -> None:
    """Check that all ranks computed the same logits, bit for bit, and as often."""
    assert sorted(logits) == list(range(size))
    for rank in range(1, size):
        assert len(logits[rank]) == len(logits[0])
        pairs = zip(logits[rank], logits[0], strict=True)
        assert all(own.equal(first) for own, first in pairs)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_ranks_answer_like_one(
    name: str, size: int, tmp_path: Path, logits: dict[int, list[Tensor]]
) -> None:
    """Greedy tokens are those of one rank, and logits the same bits on all ranks."""
    model = saved(tmp_path, name)
    expected = answers(engine(model), asked())
    logits.clear()
    assert answers(engine(model, size), asked()) == expected
    assert_bit_equal(logits, size)
