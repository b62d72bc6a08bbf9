"""A random model of a family over the Triton kernels, on the GPU where there is one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.attention.triton_attention import TritonAttention
from tokenbus.engine.backends import TritonBackend
from tokenbus.engine.sampling.plan import MAX_FORCED_ROWS
from tokenbus.engine.weights.loader import LoadedModel, build_model

if TYPE_CHECKING:
    from collections.abc import Mapping

ON_GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
# Small enough for the interpreter; its weights make few tokens near ties.
TINY_SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "initializer_range": 0.4,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
}


def triton_backend(max_rows: int, device: torch.device = DEVICE) -> TritonBackend:
    """Return the GPU's backend; on a CPU without what only a GPU does: graphs and steps ahead."""
    backend = TritonBackend(
        device=device, attention=TritonAttention(max(max_rows, MAX_FORCED_ROWS))
    )
    if device.type == "cuda":
        return backend
    return replace(backend, captures_steps=False, runs_ahead=False, has_device_clock=False)


def load_on_triton(
    config: Any,
    weights: Mapping[str, torch.Tensor],
    *,
    max_rows: int,
    dtype: torch.dtype = torch.float32,
    max_model_len: int = 1024,
    device: torch.device = DEVICE,
) -> LoadedModel:
    """Return transformers' weights as a model of ours, with an attention for `max_rows` rows."""
    backend = triton_backend(max_rows, device)
    model = build_model(
        config,
        weights,
        backend,
        dtype=dtype,
        max_model_len=max_model_len,
    )
    return LoadedModel(model, config, None, (), max_model_len, "tiny", dtype, backend)
