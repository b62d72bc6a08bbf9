"""Weights of a decoder: allocated fused, filled tensor by tensor, never held twice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.kv_cache import AttentionSpec
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.models.decoder_config import DecoderConfig, QKNorm
from tokenbus.engine.models.layers import DecoderLayer, Linear

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tokenbus.engine.models.ops import Ops
    from tokenbus.engine.models.rope import RopeTable

# Where text decoders hide inside checkpoints of multimodal wrappers.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
_LM_HEADS = ("lm_head.weight", "language_model.lm_head.weight")


_Parts = tuple[tuple[str, int], ...]


class DecoderWeights:
    """Every tensor of a decoder, and which part of it each checkpoint tensor fills."""

    def __init__(self, config: DecoderConfig, dtype: torch.dtype, device: torch.device) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._parts: dict[str, Tensor] = {}
        self._norms: list[Tensor] = []
        self._linears: list[Linear] = []
        self.embedding = self._empty(config.vocab_size, config.hidden_size)
        self._parts["embed_tokens.weight"] = self.embedding
        self.lm_head = Linear(self.embedding)
        if not config.tie_embeddings:
            self.lm_head = Linear(self._empty(config.vocab_size, config.hidden_size))
            self._parts["lm_head.weight"] = self.lm_head.weight
        self.final_norm = self._norm("norm.weight", config.hidden_size)
        self.layers = [self._layer(idx) for idx in range(len(config.layers))]

    def fill(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy checkpoint tensors into place, one at a time.

        Raises: ModelBroken if a tensor is missing or has the wrong shape.
        """
        missing = set(self._parts)
        for name, tensor in tensors:
            part_name = _part_name(name, self._parts)
            if part_name is None:
                continue
            part = self._parts[part_name]
            if part.shape != tensor.shape:
                raise ModelBroken(
                    f"{name} is {list(tensor.shape)} in the checkpoint, "
                    f"the config asks for {list(part.shape)}"
                )
            part.copy_(tensor)
            missing.discard(part_name)
        if missing:
            raise ModelBroken(
                f"{len(missing)} weights are missing from the checkpoint, "
                f"first of them {min(missing)}"
            )
        for norm in self._norms:
            norm.add_(self.config.norm_offset)

    def draw(self) -> None:
        """Fill with random weights, in place on the device (benchmarks)."""
        self.embedding.normal_(std=self.config.initializer_range)
        for linear in (*self._linears, self.lm_head):
            linear.weight.normal_(std=self.config.initializer_range)
            if linear.bias is not None:
                linear.bias.zero_()
        for norm in self._norms:
            norm.fill_(1.0)

    def build(self, ropes: dict[str, RopeTable], ops: Ops) -> Decoder:
        """Return the decoder around these weights."""
        for layer, shape in zip(self.layers, self.config.layers, strict=True):
            layer.rope = None if shape.rope is None else ropes[shape.rope]
        return Decoder(self.config, self.embedding, self.layers, self.final_norm, self.lm_head, ops)

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _norm(self, name: str, size: int) -> Tensor:
        # weight + 1 is kept in float32, where the sum costs no precision.
        dtype = torch.float32 if self.config.norm_offset else self.dtype
        norm = torch.empty(size, dtype=dtype, device=self.device)
        self._norms.append(norm)
        self._parts[name] = norm
        return norm

    def _optional_norm(self, prefix: str, name: str | None, size: int) -> Tensor | None:
        return None if name is None else self._norm(f"{prefix}{name}.weight", size)

    def _linear(self, prefix: str, parts: _Parts, in_size: int, bias: bool) -> Linear:
        """Allocate one fused linear out of checkpoint linears stacked on the output axis."""
        out_size = sum(size for _, size in parts)
        linear = Linear(self._empty(out_size, in_size), self._empty(out_size) if bias else None)
        start = 0
        for name, size in parts:
            self._parts[f"{prefix}{name}.weight"] = linear.weight[start : start + size]
            if linear.bias is not None:
                self._parts[f"{prefix}{name}.bias"] = linear.bias[start : start + size]
            start += size
        self._linears.append(linear)
        return linear

    def _layer(self, idx: int) -> DecoderLayer:
        config = self.config
        hidden, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
        q_size, kv_size = config.num_heads * dim, config.num_kv_heads * dim
        names, prefix = config.norm_names, f"layers.{idx}."
        attention, mlp = f"{prefix}self_attn.", f"{prefix}mlp."
        qkv_parts: _Parts = (("q_proj", q_size), ("k_proj", kv_size), ("v_proj", kv_size))
        gate_up_parts: _Parts = (("gate_proj", inner), ("up_proj", inner))
        if config.fused_checkpoint:
            qkv_parts = (("qkv_proj", config.qkv_size),)
            gate_up_parts = (("gate_up_proj", 2 * inner),)
        q_norm = k_norm = None
        if config.qk_norm is not QKNorm.NONE:
            per_head = config.qk_norm is QKNorm.PER_HEAD
            q_norm = self._norm(f"{attention}q_norm.weight", dim if per_head else q_size)
            k_norm = self._norm(f"{attention}k_norm.weight", dim if per_head else kv_size)
        return DecoderLayer(
            spec=self._spec(idx),
            rope=None,
            qkv=self._linear(attention, qkv_parts, hidden, config.qkv_bias),
            o=self._linear(attention, (("o_proj", hidden),), q_size, config.o_bias),
            gate_up=self._linear(mlp, gate_up_parts, hidden, config.mlp_bias),
            down=self._linear(mlp, (("down_proj", hidden),), inner, config.mlp_bias),
            pre_attention_norm=self._optional_norm(prefix, names.pre_attention, hidden),
            post_attention_norm=self._optional_norm(prefix, names.post_attention, hidden),
            pre_mlp_norm=self._optional_norm(prefix, names.pre_mlp, hidden),
            post_mlp_norm=self._optional_norm(prefix, names.post_mlp, hidden),
            q_norm=q_norm,
            k_norm=k_norm,
        )

    def _spec(self, idx: int) -> AttentionSpec:
        config = self.config
        return AttentionSpec(
            layer_idx=idx,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            scale=config.attention_scale,
            sliding_window=config.layers[idx].sliding_window,
            softcap=config.attention_softcap,
        )


def _part_name(name: str, parts: dict[str, Tensor]) -> str | None:
    """Return which part a checkpoint tensor fills; None for buffers and foreign towers."""
    if name in _LM_HEADS:
        return "lm_head.weight" if "lm_head.weight" in parts else None
    for prefix in _PREFIXES:
        if name.startswith(prefix) and name.removeprefix(prefix) in parts:
            return name.removeprefix(prefix)
    return None
