"""Tensors of a decoder while they are read: allocated fused, filled one by one, held once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.kv_cache import AttentionSpec
from tokenbus.engine.models.decoder_config import DecoderConfig, QKNorm
from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors, Linear
from tokenbus.engine.weights.readers import LinearShape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tokenbus.engine.models.rope import RopeTable
    from tokenbus.engine.weights.readers import LinearReading, WeightReader

# Where text decoders hide inside checkpoints of multimodal wrappers.
_PREFIXES = ("model.language_model.", "language_model.model.", "model.", "")
_HEAD = "lm_head"

_Parts = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class _OpenLinear:
    reading: LinearReading
    bias: Tensor | None

    def finish(self) -> Linear:
        return Linear(self.reading.finish(), self.bias)


@dataclass(frozen=True, slots=True)
class _OpenLayer:
    """A layer while it is read; `norms` by the fields of DecoderLayer."""

    spec: AttentionSpec
    qkv: _OpenLinear
    o: _OpenLinear
    gate_up: _OpenLinear
    down: _OpenLinear
    norms: dict[str, Tensor | None]

    def linears(self) -> tuple[_OpenLinear, ...]:
        return self.qkv, self.o, self.gate_up, self.down

    def finish(self, rope: RopeTable | None) -> DecoderLayer:
        return DecoderLayer(
            spec=self.spec,
            rope=rope,
            qkv=self.qkv.finish(),
            o=self.o.finish(),
            gate_up=self.gate_up.finish(),
            down=self.down.finish(),
            **self.norms,
        )


class DecoderWeights:
    """Every tensor of a decoder, and which part of it each checkpoint tensor fills.

    `reader` says which tensors make up a linear, and what kind of weight they make.
    """

    def __init__(
        self, config: DecoderConfig, dtype: torch.dtype, device: torch.device, reader: WeightReader
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._reader = reader
        self._parts: dict[str, Tensor] = {}
        self._norms: list[Tensor] = []
        self._embedding = self._empty(config.vocab_size, config.hidden_size)
        self._parts["embed_tokens.weight"] = self._embedding
        self._head_shape = LinearShape(
            ((_HEAD, config.vocab_size),), config.hidden_size, dtype, device, is_head=True
        )
        self._head = None if config.tie_embeddings else self._open(self._head_shape, bias=False)
        self._final_norm = self._norm("norm.weight", config.hidden_size)
        self._layers = [self._layer(idx) for idx in range(len(config.layers))]

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
        std = self.config.initializer_range
        self._embedding.normal_(std=std)
        linears = [linear for layer in self._layers for linear in layer.linears()]
        if self._head is not None:
            linears.append(self._head)
        for linear in linears:
            linear.reading.draw(std)
            if linear.bias is not None:
                linear.bias.zero_()
        for norm in self._norms:
            norm.fill_(1.0)

    def finish(self, ropes: dict[str, RopeTable]) -> DecoderTensors:
        """Make the weights of all linears, each as the memory that it was read into is let go."""
        self._parts.clear()
        layers: list[DecoderLayer] = []
        for shape in self.config.layers:
            rope = None if shape.rope is None else ropes[shape.rope]
            layers.append(self._layers.pop(0).finish(rope))
        if self._head is None:
            head = Linear(self._reader.tied(self._embedding, self._head_shape))
        else:
            head = self._head.finish()
            self._head = None
        return DecoderTensors(self.config, self._embedding, layers, self._final_norm, head)

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

    def _open(self, shape: LinearShape, *, bias: bool) -> _OpenLinear:
        reading = self._reader.open(shape)
        self._parts |= reading.parts
        if not bias:
            return _OpenLinear(reading, None)
        values = self._empty(shape.num_outputs)
        sizes = [size for _, size in shape.parts]
        for (name, _), part in zip(shape.parts, torch.split(values, sizes), strict=True):
            self._parts[f"{name}.bias"] = part
        return _OpenLinear(reading, values)

    def _linear(self, prefix: str, parts: _Parts, num_inputs: int, *, bias: bool) -> _OpenLinear:
        """Open one fused linear out of checkpoint linears stacked on the output axis."""
        named = tuple((f"{prefix}{name}", size) for name, size in parts)
        return self._open(LinearShape(named, num_inputs, self.dtype, self.device), bias=bias)

    def _layer(self, idx: int) -> _OpenLayer:
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
        return _OpenLayer(
            spec=self._spec(idx),
            qkv=self._linear(attention, qkv_parts, hidden, bias=config.qkv_bias),
            o=self._linear(attention, (("o_proj", hidden),), q_size, bias=config.o_bias),
            gate_up=self._linear(mlp, gate_up_parts, hidden, bias=config.mlp_bias),
            down=self._linear(mlp, (("down_proj", hidden),), inner, bias=config.mlp_bias),
            norms={
                "pre_attention_norm": self._optional_norm(prefix, names.pre_attention, hidden),
                "post_attention_norm": self._optional_norm(prefix, names.post_attention, hidden),
                "pre_mlp_norm": self._optional_norm(prefix, names.pre_mlp, hidden),
                "post_mlp_norm": self._optional_norm(prefix, names.post_mlp, hidden),
                "q_norm": q_norm,
                "k_norm": k_norm,
            },
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
    head = name.removeprefix("language_model.")
    if head.startswith(f"{_HEAD}."):
        return head if head in parts else None
    for prefix in _PREFIXES:
        if name.startswith(prefix) and name.removeprefix(prefix) in parts:
            return name.removeprefix(prefix)
    return None
