"""Defaults of a request at the door of the queue.

Its bounds are those of the engine, `engine/chat/requests/bounds.py`.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

# What holds where a request says nothing, whichever door it comes through: Python, the command
# line, a raw entry, a table of crons or arq.
DEFAULTS: Mapping[str, int | float | None] = MappingProxyType(
    {
        "n": 1,
        "max_tokens": 128,
        "min_tokens": 0,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": None,
        "logprobs": None,
        "prompt_logprobs": None,
    }
)
# Of these the checkpoint may have defaults of its own: left out is not given as the default.
CHECKPOINT_FIELDS = frozenset({"temperature", "top_k", "top_p", "min_p", "repetition_penalty"})
DEFAULT_PRIORITY = 1
