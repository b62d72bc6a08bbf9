"""Rotary positions of a GGUF file: its fields, or a table of divisors, as config fields."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.errors import ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor

# What all models with a rule of this kind were trained with; only the factor differs.
_LOW, _HIGH, _ORIGINAL = 1.0, 4.0, 8192


def rope_parameters(told: Mapping[str, Any], dim: int, tables: Sequence[Tensor]) -> dict[str, Any]:
    """Return the `rope_parameters` of a config.

    told: fields of the architecture by their last names; dim: size of a head; tables: the tensor
    `rope_freqs`, [dim / 2] divisors of the frequencies, if there is one.
    Raises: ModelUnsupported for a rule that is not known, or a table that no known rule gives.
    """
    theta = float(told.get("rope.freq_base", 10000.0))
    kind = str(told.get("rope.scaling.type", "none"))
    factor = float(told.get("rope.scaling.factor", 1.0))
    plain = {"rope_type": "default", "rope_theta": theta}
    if tables:
        return _by_table(tables[0], theta, dim)
    if kind == "none" or (kind == "linear" and factor == 1.0):
        return plain
    if kind == "linear":
        return plain | {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and "rope.scaling.original_context_length" in told:
        original = int(told["rope.scaling.original_context_length"])
        more = {"factor": factor, "original_max_position_embeddings": original}
        return plain | {"rope_type": "yarn"} | more
    raise ModelUnsupported(f"a GGUF file with rotary scaling {kind} cannot be read")


def _by_table(table: Tensor, theta: float, dim: int) -> dict[str, Any]:
    """Return the rule of Llama 3 that gives the table."""
    factor = float(table.max())
    frequencies = theta ** -(torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    lengths = 2 * math.pi / frequencies
    blend = ((_ORIGINAL / lengths - _LOW) / (_HIGH - _LOW)).clamp(0, 1)
    divisors = 1 / (blend + (1 - blend) / factor)
    if table.shape != divisors.shape or not torch.allclose(
        table.double(), divisors, rtol=1e-4, atol=0
    ):
        raise ModelUnsupported("the GGUF file has a table rope_freqs of a rule that is not known")
    return {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": factor,
        "low_freq_factor": _LOW,
        "high_freq_factor": _HIGH,
        "original_max_position_embeddings": _ORIGINAL,
    }
