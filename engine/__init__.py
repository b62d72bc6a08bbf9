"""The tokenbus engine: pages, scheduler, model and sampler, without any queue.

`LLM` answers prompts offline; `build_engine` gives an engine to add requests to and to step.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenbus.engine.build import build_engine
    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.llm import LLM
    from tokenbus.engine.offline.output import Completion, Output
    from tokenbus.engine.types import Request, SamplingParams

__all__ = [
    "LLM", "SamplingParams", "Output", "Completion", "build_engine", "EngineConfig", "Request",
]  # fmt: skip

_HOMES = {
    "LLM": "llm",
    "SamplingParams": "types",
    "Output": "offline.output",
    "Completion": "offline.output",
    "build_engine": "build",
    "EngineConfig": "config",
    "Request": "types",
}


def __getattr__(name: str) -> Any:
    """Import a name on its first use: an import of the package alone loads no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
