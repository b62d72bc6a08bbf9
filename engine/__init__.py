"""The tokenbus engine: pages, scheduler, model and sampler, without any queue."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenbus.engine.llm import LLM
    from tokenbus.engine.output import Completion, Output
    from tokenbus.engine.types import SamplingParams

__all__ = ["LLM", "SamplingParams", "Output", "Completion"]

_HOMES = {"LLM": "llm", "SamplingParams": "types", "Output": "output", "Completion": "output"}


def __getattr__(name: str) -> Any:
    """Import on use: whoever imports a part of the engine does not pay for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
