"""Backends of the tests: the CPU's own, and plain torch alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.backends import TorchBackend, choose_backend
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.models.ops import TorchOps

if TYPE_CHECKING:
    from tokenbus.engine.models.backend import Backend
    from tokenbus.engine.models.decoder_config import DecoderConfig

CPU = torch.device("cpu")


def cpu_backend(dtype: str = "float32") -> Backend:
    """Return what a CPU gets: its compiled kernels where there is a compiler."""
    return choose_backend(EngineConfig("any", device="cpu", dtype=dtype))


@dataclass(frozen=True, slots=True, kw_only=True)
class StepwiseBackend(TorchBackend):
    """Plain torch, step by step, in every dtype: the reference of faster ops."""

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> TorchOps:
        """Return the steps over weights as they are."""
        del shape, dtype
        return TorchOps(self.attention)


def stepwise_backend(attention: TorchAttention | None = None) -> StepwiseBackend:
    """Return the reference, over an attention of its own or another."""
    return StepwiseBackend(device=CPU, attention=attention or TorchAttention())
