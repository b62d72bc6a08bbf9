"""Fixtures of tests that drive a model without an engine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from models import architectures
from models.greedy_driver import GreedyDriver, Reference, draw_prompts

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def driver() -> type[GreedyDriver]:
    """Return the driver's class."""
    return GreedyDriver


@pytest.fixture
def reference() -> type[Reference]:
    """Return the reference's class."""
    return Reference


@pytest.fixture
def prompts() -> Callable[[int, list[int]], list[list[int]]]:
    """Return a function that draws prompts of given lengths."""
    return draw_prompts


@pytest.fixture
def sizes() -> Callable[..., dict[str, Any]]:
    """Return `architectures.tiny_sizes`."""
    return architectures.tiny_sizes


@pytest.fixture
def draw_model() -> Callable[..., Any]:
    """Return `architectures.draw_model`."""
    return architectures.draw_model
