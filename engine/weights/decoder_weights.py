"""Tensors of a decoder while they are read: allocated fused, filled one by one, held once.

The file is one noun, past three hundred lines: the table of all places that a checkpoint fills.
"""

from __future__ import annotations

import logging
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.errors import ModelBroken
from tokenbus.engine.kv_cache import AttentionSpec
from tokenbus.engine.models.decoder_config import DecoderConfig, QKNorm
from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors, Linear
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.parallel.rank_cut import LinearPart, RankCut
from tokenbus.engine.weights.leftovers import Leftovers
from tokenbus.engine.weights.open_layer import OpenLayer, OpenLinear, OpenMixture, OpenMLP
from tokenbus.engine.weights.readers import Cut, LinearShape
from tokenbus.engine.weights.slots import MemorySlot, refuse_second, refuse_shape

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.models.rope import RopeTable
    from tokenbus.engine.weights.readers import WeightReader
    from tokenbus.engine.weights.slots import Slot

_log = logging.getLogger(__name__)

# Where text decoders hide inside checkpoints of multimodal wrappers.
_PREFIXES = (
    "model.language_model.",
    "language_model.model.",
    "model.text_model.",
    "text_model.model.",
    "model.",
    "",
)
# And where such a wrapper keeps the head, besides.
_HEAD_PREFIXES = ("language_model.", "text_model.")
_HEAD = "lm_head"
_EMBEDDING = "embed_tokens.weight"
_QKV = ("q_proj", "k_proj", "v_proj")

# Names of linears in the checkpoint, with the outputs of each section of their matrices.
_Parts = tuple[tuple[str, tuple[int, ...]], ...]


class DecoderWeights:
    """Every tensor of a decoder, and which part of it each checkpoint tensor fills.

    `reader` says which tensors make up a linear, and what kind of weight they make. `has_towers` is
    true if the checkpoint may hold models for other inputs than text beside the decoder. `cut` is
    there if `config` is one rank's part of the model: it takes its part of each tensor.
    """

    def __init__(
        self,
        config: DecoderConfig,
        dtype: torch.dtype,
        device: torch.device,
        reader: WeightReader,
        *,
        has_towers: bool = False,
        cut: RankCut | None = None,
    ) -> None:
        self.config = config
        self.dtype = dtype
        self.device = device
        self._reader = reader
        self._has_towers = has_towers
        self._cut = cut
        self._slots: dict[str, Slot] = {}
        # Of the slots that belong to linears; and names whose slots were read and let go.
        self._owners: dict[str, OpenLinear] = {}
        self._done: set[str] = set()
        self._linears: dict[str, LinearPart] = {}
        self._norms: list[Tensor] = []
        self._routers: list[Tensor] = []
        self._embedding = self._empty(config.vocab_size, config.hidden_size)
        self._give(_EMBEDDING, self._embedding)
        # Of a vocabulary that cannot be shared evenly, every rank has the whole head.
        parts = 1 if cut is None or config.vocab_size % cut.size else cut.size
        self._head_shape = LinearShape(
            ((_HEAD, config.vocab_size // parts),), config.hidden_size, dtype, device,
            is_head=True, cut=Cut.NONE if parts == 1 else Cut.OUTPUTS,
        )  # fmt: skip
        # A checkpoint may have a head of its own even where the config ties it to the embedding.
        self._linears[_HEAD] = LinearPart((self._head_shape.num_outputs,), config.hidden_size)
        self._head = self._open(self._head_shape, bias=False)
        self._head_names = frozenset(self._head.slots)
        self._final_norm = self._norm("norm.weight", config.hidden_size)
        self._layers = [self._layer(idx) for idx in range(len(config.layers))]

    def cut_for(self, rank: int, size: int) -> RankCut:
        """Return what cuts tensors of this whole model for one of `size` ranks."""
        shapes = {name: slot.shapes for name, slot in self._slots.items()}
        return RankCut(rank, size, shapes, self._linears)

    def fill(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Copy checkpoint tensors into place, one at a time; a linear is made once it is whole.

        Raises: ModelBroken if a tensor is missing, comes twice or has the wrong shape;
            ModelUnsupported for one of a dtype that cannot be read, or that nothing takes.
        """
        leftovers = Leftovers(
            frozenset(self._linears), len(self.config.layers), has_towers=self._has_towers
        )
        for name, tensor in tensors:
            part = self._part_name(name)
            if part in self._done:
                refuse_second(name, is_filled=True)
            if part in self._slots:
                self._slots[part].fill(name, self._own_part(part, name, tensor))
                self._make_if_whole(part)
            else:
                leftovers.check(name, part, tensor)
        self._refuse_missing()
        leftovers.tell()
        for norm in self._norms:
            norm.add_(self.config.norm_offset)

    def draw(self) -> None:
        """Fill with random weights, in place on the device (benchmarks)."""
        std = self.config.initializer_range
        self._embedding.normal_(std=std)
        linears = [linear for layer in self._layers for linear in layer.linears()]
        if not self.config.tie_embeddings:
            linears.append(self._head)
        for linear in linears:
            linear.draw(std)
            linear.make()
            if linear.bias is not None:
                linear.bias.zero_()
        for norm in self._norms:
            norm.fill_(1.0)
        for router in self._routers:
            router.normal_(std=std)

    def finish(self, ropes: dict[str, RopeTable]) -> DecoderTensors:
        """Make the weights of all linears, each as the memory that it was read into is let go."""
        head = self._finished_head()
        self._slots.clear()
        self._owners.clear()
        layers: list[DecoderLayer] = []
        for shape in self.config.layers:
            rope = None if shape.rope is None else ropes[shape.rope]
            layers.append(self._layers.pop(0).finish(rope))
        return DecoderTensors(self.config, self._embedding, layers, self._final_norm, head)

    def _finished_head(self) -> Linear:
        """Return the checkpoint's head; the embedding if there is none, or no other one."""
        if not self.config.tie_embeddings:
            return self._head.finish()
        own = slice(None)
        if self._head_shape.cut is not Cut.NONE and self._cut is not None:
            own = slice(*self._cut.piece(self.config.vocab_size, self._head_shape.num_outputs))
        tied = self._reader.tied(self._embedding[own], self._head_shape)
        if not self._head_came():
            return Linear(tied)
        head = self._head.finish()
        if _are_equal(head.weight, tied):
            return Linear(tied)
        _log.warning(
            "weights.untied: the config ties the head to the embedding, but the checkpoint has"
            " another one, which is used"
        )
        return head

    def _head_came(self) -> bool:
        return any(name in self._done or self._slots[name].is_filled for name in self._head_names)

    def _refuse_missing(self) -> None:
        """Raise ModelBroken unless every slot that has to be is filled."""
        missing = {
            name for name, slot in self._slots.items() if slot.is_required and not slot.is_filled
        }
        if self.config.tie_embeddings and not self._head_came():
            missing -= self._head_names
        elif self.config.tie_embeddings and missing == {_EMBEDDING} and self._cut is None:
            # Saved under its other name.
            head = self._head.make()
            if isinstance(head, PlainWeight):
                self._embedding.copy_(head.values)
                return
        if missing:
            raise ModelBroken(
                f"{len(missing)} weights are missing from the checkpoint, "
                f"first of them {min(missing)}"
            )

    def _own_part(self, part: str, name: str, tensor: Tensor) -> Tensor:
        """Return what of a tensor belongs here: all of it, unless other ranks have parts."""
        own = self._linears.get(part.rpartition(".")[0])
        if self._cut is None or own is None:
            return tensor
        refuse_shape(name, tensor, self._cut.shapes[part])
        return self._cut.cut(part, name, tensor, own, self._slots[part].shapes)

    def _make_if_whole(self, part: str) -> None:
        """Make the weight that a slot belongs to once nothing of it is left to come."""
        owner = self._owners.get(part)
        if owner is None or not all(slot.is_filled for slot in owner.slots.values()):
            return
        for name in owner.slots:
            del self._slots[name]
            self._done.add(name)
        owner.make()

    def _part_name(self, name: str) -> str:
        """Return a checkpoint tensor's name without the prefix of the text decoder."""
        for prefix in (*_HEAD_PREFIXES, *_PREFIXES):
            if name.startswith(f"{prefix}{_HEAD}."):
                return name.removeprefix(prefix)
        prefixes = [prefix for prefix in _PREFIXES if name.startswith(prefix)]
        for prefix in prefixes:
            part = name.removeprefix(prefix)
            if part in self._slots or part in self._done:
                return part
        return name.removeprefix(prefixes[0])

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def _give(self, name: str, memory: Tensor) -> None:
        """Let a checkpoint tensor be copied into `memory`."""
        self._slots[name] = MemorySlot(tuple(memory.shape), lambda: memory)

    def _norm(self, name: str, size: int) -> Tensor:
        # weight + 1 is kept in float32, where the sum costs no precision.
        dtype = torch.float32 if self.config.norm_offset else self.dtype
        norm = torch.empty(size, dtype=dtype, device=self.device)
        self._norms.append(norm)
        self._give(name, norm)
        return norm

    def _optional_norm(self, prefix: str, name: str | None, size: int) -> Tensor | None:
        return None if name is None else self._norm(f"{prefix}{name}.weight", size)

    def _open(self, shape: LinearShape, *, bias: bool) -> OpenLinear:
        reading = self._reader.open(shape)
        values = self._empty(shape.num_outputs) if bias else None
        linear = OpenLinear(reading, values)
        self._slots |= reading.parts
        self._owners |= dict.fromkeys(reading.parts, linear)
        if values is not None:
            sizes = [size for _, size in shape.parts]
            for (name, _), part in zip(shape.parts, torch.split(values, sizes), strict=True):
                self._give(f"{name}.bias", part)
        return linear

    def _linear(
        self, prefix: str, parts: _Parts, num_inputs: int, cut: Cut, *, bias: bool = False
    ) -> OpenLinear:
        """Open one fused linear out of checkpoint linears stacked on the output axis.

        `cut` says between which numbers ranks divide it.
        """
        for name, sections in parts:
            self._linears[f"{prefix}{name}"] = LinearPart(sections, num_inputs)
        named = tuple((f"{prefix}{name}", sum(sections)) for name, sections in parts)
        cut = Cut.NONE if self._cut is None else cut
        shape = LinearShape(named, num_inputs, self.dtype, self.device, cut=cut)
        return self._open(shape, bias=bias)

    def _layer(self, idx: int) -> OpenLayer:
        config = self.config
        hidden, dim = config.hidden_size, config.head_dim
        q_size, kv_size = config.num_heads * dim, config.num_kv_heads * dim
        names, prefix = config.norm_names, f"layers.{idx}."
        attention = f"{prefix}self_attn."
        qkv_parts: _Parts = tuple(zip(_QKV, ((q_size,), (kv_size,), (kv_size,)), strict=True))
        if config.fused_checkpoint:
            qkv_parts = (("qkv_proj", (q_size, kv_size, kv_size)),)
        q_norm = k_norm = None
        if config.qk_norm is not QKNorm.NONE:
            per_head = config.qk_norm is QKNorm.PER_HEAD
            q_norm = self._norm(f"{attention}q_norm.weight", dim if per_head else q_size)
            k_norm = self._norm(f"{attention}k_norm.weight", dim if per_head else kv_size)
            if not per_head:
                # They are divided as what they scale.
                self._linears[f"{attention}q_norm"] = LinearPart((q_size,), hidden)
                self._linears[f"{attention}k_norm"] = LinearPart((kv_size,), hidden)
        return OpenLayer(
            spec=self._spec(idx),
            qkv=self._linear(attention, qkv_parts, hidden, Cut.OUTPUTS, bias=config.qkv_bias),
            o=self._linear(
                attention, (("o_proj", (hidden,)),), q_size, Cut.INPUTS, bias=config.o_bias
            ),
            mlp=self._mixture(prefix) if config.layers[idx].is_mixture else self._mlp(prefix),
            norms={
                "pre_attention_norm": self._optional_norm(prefix, names.pre_attention, hidden),
                "post_attention_norm": self._optional_norm(prefix, names.post_attention, hidden),
                "pre_mlp_norm": self._optional_norm(prefix, names.pre_mlp, hidden),
                "post_mlp_norm": self._optional_norm(prefix, names.post_mlp, hidden),
                "q_norm": q_norm,
                "k_norm": k_norm,
            },
        )

    def _mlp(self, prefix: str) -> OpenMLP:
        config, inner = self.config, self.config.intermediate_size
        parts: _Parts = (("mlp.gate_proj", (inner,)), ("mlp.up_proj", (inner,)))
        if config.fused_checkpoint:
            parts = (("mlp.gate_up_proj", (inner, inner)),)
        down: _Parts = (("mlp.down_proj", (config.hidden_size,)),)
        return OpenMLP(
            self._linear(prefix, parts, config.hidden_size, Cut.OUTPUTS, bias=config.mlp_bias),
            self._linear(prefix, down, inner, Cut.INPUTS, bias=config.mlp_bias),
        )

    def _mixture(self, prefix: str) -> OpenMixture:
        """Open a mixture: every expert's matrices are parts of one stack."""
        shape, hidden = self.config.mixture, self.config.hidden_size
        assert shape is not None
        names, inner, size = shape.names, shape.intermediate_size, shape.shared_size
        router = self._empty(shape.num_logits, hidden)
        self._routers.append(router)
        self._give(f"{prefix}{names.router}.weight", router[: shape.num_experts])
        if shape.has_shared_gate:
            self._give(f"{prefix}{names.shared_gate}.weight", router[shape.num_experts :])
        shared = None
        if size:
            *gate_up, down = names.shared
            parts = tuple((name, (size,) * (2 // len(gate_up))) for name in gate_up)
            shared = OpenMLP(
                self._linear(prefix, parts, hidden, Cut.OUTPUTS),
                self._linear(prefix, ((down, (hidden,)),), size, Cut.INPUTS),
            )
        experts = [f"{names.experts}.{number}." for number in range(shape.num_experts)]
        gates = tuple(
            (f"{expert}{name}", (inner,)) for expert in experts for name in (names.gate, names.up)
        )
        downs = tuple((f"{expert}{names.down}", (hidden,)) for expert in experts)
        return OpenMixture(
            shape,
            router,
            self._linear(prefix, gates, hidden, Cut.OUTPUTS),
            self._linear(prefix, downs, inner, Cut.INPUTS),
            shared,
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


def text_prefixes(names: Iterable[str]) -> tuple[str, ...]:
    """Return what stands before the text decoder's own names, in tensors of those names.

    Configs may list modules under the name that a model without other towers would give them.
    """
    found = [name.partition("layers.")[0] for name in names if "layers." in name]
    used = [prefix for prefix in _PREFIXES if prefix in found]
    return tuple(dict.fromkeys((*used, "model.")))


def _are_equal(first: LinearWeight, second: LinearWeight) -> bool:
    """Tell whether two weights are of one kind and hold the same."""
    if type(first) is not type(second):
        return False
    kind: Any = first
    pairs = [(getattr(first, item.name), getattr(second, item.name)) for item in fields(kind)]
    return all(
        one.equal(other) if isinstance(one, torch.Tensor) else one == other for one, other in pairs
    )
