"""The decoder on a CPU in one call per pass, by kernels compiled for the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from tokenbus.engine.attention.native_attention import NativeAttention, shape_args
from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.decoder_config import Activation
from tokenbus.engine.models.layers import Linear
from tokenbus.engine.models.ops import TorchOps
from tokenbus.kernels.cpu.native import (
    DTYPES,
    LayerArgs,
    LinearArgs,
    ModelArgs,
    NativeLibrary,
    WeightFormat,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext, PagedAttention
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.models.decoder import Decoder
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.layers import DecoderLayer

_FORMATS = {None: WeightFormat.PLAIN, "int8": WeightFormat.INT8, "int4": WeightFormat.INT4}
# Packed weights begin on lines of the cache.
_ALIGNMENT = 64
_ACTIVATIONS = {Activation.SILU: 0, Activation.GELU_TANH: 1, Activation.GELU: 2}


class NativeOps(TorchOps):
    """All layers, whatever their family's layout, in one call of compiled code per pass.

    The steps in torch are not used: their weights are gone once they are packed.
    """

    attention: NativeAttention

    def __init__(self, attention: PagedAttention, *, quantization: str | None = None) -> None:
        """Compute through `attention`, which has to be a NativeAttention.

        `quantization` is int8, int4 or None; with int4 the head, on which every choice of a token
        hangs, keeps 8 bits.
        """
        super().__init__(attention)
        self._format = _FORMATS[quantization]
        self._head_format = min(self._format, WeightFormat.INT8)
        self._library: NativeLibrary = self.attention.library
        self._model: ModelArgs | None = None
        self._layers: Any = None
        self._dtype = torch.float32
        self._used = 0
        self._kv: KVCache | None = None
        # Memory that the structures point to.
        self._owned: list[Tensor] = []

    @staticmethod
    def supports(config: DecoderConfig, dtype: torch.dtype) -> bool:
        """Tell whether the kernels cover a model: bfloat16 is multiplied in pairs of inputs."""
        sizes = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
        return dtype in DTYPES and all(size % 2 == 0 for size in sizes)

    def prepare(self, model: Decoder) -> None:
        """Pack every weight; plain ones are dropped unless the embedding shares them.

        Raises: ModelUnsupported for a size or dtype that the kernels do not have.
        """
        config = model.config
        if not self.supports(config, model.embedding.dtype):
            raise ModelUnsupported(f"the CPU's kernels cover no {model.embedding.dtype} like this")
        width = self._library.panel_width
        # Gate and up are filled up to whole panels each.
        inner = -(-config.intermediate_size // width) * width
        self._layers = (LayerArgs * len(model.layers))()
        shapes: list[tuple[Sequence[int], WeightFormat]] = [
            (shape, self._format)
            for layer in model.layers
            for shape in (
                layer.qkv.weight.shape,
                layer.o.weight.shape,
                (2 * inner, config.hidden_size),
                layer.down.weight.shape,
            )
        ]
        shapes.append((model.lm_head.weight.shape, self._head_format))
        self._dtype = dtype = model.embedding.dtype
        total = sum(self._arena_bytes(shape, fmt, dtype) for shape, fmt in shapes)
        self._arena = torch.empty(total, dtype=torch.uint8)
        self._library.use_huge_pages(self._arena)
        for args, layer in zip(self._layers, model.layers, strict=True):
            self._describe(args, layer, inner)
        keep = model.lm_head.weight is model.embedding
        self._pack(model.lm_head, self._head_format, keep=keep)
        self._model = ModelArgs(
            self._layers, len(model.layers), config.hidden_size, config.intermediate_size,
            _ACTIVATIONS[config.activation], config.norm_eps, config.residual_scale,
        )  # fmt: skip

    def logits(
        self, hidden: Tensor, norm: Tensor, eps: float, head: Linear, *, exact: bool
    ) -> Tensor:
        """hidden: [M, H] -> head(rms_norm(hidden)), [M, V] float32, until the next call."""
        del exact
        return self._library.linear(hidden, head.packed, norm.float(), eps, self._dtype)

    def run_layers(self, model: Decoder, hidden: Tensor, ctx: ForwardContext) -> Tensor:  # noqa: ARG002
        """Take hidden [T, H] through all layers, the sum of which is kept in float32."""
        assert self._model is not None
        if self._kv is not ctx.kv:
            self._bind(ctx.kv)
        hidden = hidden.float()
        self._library.forward(self._model, self.attention.batch_args(ctx), hidden, self._dtype)
        return hidden

    def _bind(self, kv: KVCache) -> None:
        for args, k_pages, v_pages in zip(self._layers, kv.k, kv.v, strict=True):
            args.k_pages, args.v_pages = k_pages.data_ptr(), v_pages.data_ptr()
            args.shape.page_size = kv.page_size
            self._library.use_huge_pages(k_pages)
            self._library.use_huge_pages(v_pages)
        self._kv = kv

    def _describe(self, args: LayerArgs, layer: DecoderLayer, inner: int) -> None:
        args.qkv = self._pack(layer.qkv, self._format)
        args.o = self._pack(layer.o, self._format)
        gate_up = _interleaved(layer.gate_up, inner, self._library.panel_width)
        args.gate_up = self._pack(gate_up, self._format)
        layer.gate_up.weight = layer.gate_up.weight.new_empty((0, layer.gate_up.weight.shape[1]))
        args.down = self._pack(layer.down, self._format)
        args.pre_attention_norm = self._floats(layer.pre_attention_norm)
        args.post_attention_norm = self._floats(layer.post_attention_norm)
        args.pre_mlp_norm = self._floats(layer.pre_mlp_norm)
        args.post_mlp_norm = self._floats(layer.post_mlp_norm)
        if layer.q_norm is not None and layer.k_norm is not None:
            args.q_norm, args.k_norm = self._floats(layer.q_norm), self._floats(layer.k_norm)
            args.q_norm_size, args.k_norm_size = layer.q_norm.numel(), layer.k_norm.numel()
        if layer.rope is not None:
            args.cos, args.sin = self._floats(layer.rope.cos), self._floats(layer.rope.sin)
            args.rot_dim = layer.rope.rot_dim
        args.shape = shape_args(layer.spec, 1)

    def _arena_bytes(self, shape: Sequence[int], fmt: WeightFormat, dtype: torch.dtype) -> int:
        size = self._library.packed_bytes(shape, fmt, dtype)
        return -(-size // _ALIGNMENT) * _ALIGNMENT

    def _pack(self, linear: Linear, fmt: WeightFormat, *, keep: bool = False) -> LinearArgs:
        num_outputs, num_inputs = linear.weight.shape
        weight, scales, dtype = linear.weight.contiguous(), None, linear.weight.dtype
        packed = self._arena[self._used :]
        self._used += self._arena_bytes((num_outputs, num_inputs), fmt, dtype)
        if fmt == WeightFormat.INT8:
            weight, scales = _int8(weight)
        self._library.pack(weight, packed, fmt, dtype)
        packed_args = LinearArgs(
            packed.data_ptr(), self._panel_floats(linear.bias, num_outputs),
            self._panel_floats(scales, num_outputs), num_inputs, num_outputs, fmt,
        )  # fmt: skip
        linear.packed = packed_args
        if not keep:
            linear.weight = linear.weight.new_empty((0, num_inputs))
        return packed_args

    def _panel_floats(self, values: Tensor | None, num_outputs: int) -> int | None:
        """Return the address of one float32 per output, filled up to whole panels."""
        if values is None:
            return None
        width = self._library.panel_width
        return self._floats(F.pad(values, (0, -num_outputs % width)))

    def _floats(self, values: Tensor | None) -> int | None:
        """Return the address of a float32 copy, or of the tensor itself if it is one."""
        if values is None:
            return None
        owned = values.float().contiguous()
        self._owned.append(owned)
        return owned.data_ptr()


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Round a weight [out, in] to int8: (rounded, scale of each output in float32)."""
    scales = weight.abs().amax(1).float().div_(127).clamp_(min=torch.finfo(torch.float32).tiny)
    return (weight / scales[:, None]).round_().to(torch.int8), scales


def _interleaved(gate_up: Linear, inner: int, width: int) -> Linear:
    """Return the linear with panels of gate and of up alternating, each half `inner` outputs."""

    def mixed(values: Tensor) -> Tensor:
        halves = values.view(2, -1, *values.shape[1:])
        full = values.new_zeros((2, inner, *values.shape[1:]))
        full[:, : halves.shape[1]] = halves
        panels = full.view(2, inner // width, width, *values.shape[1:]).transpose(0, 1)
        return panels.reshape(2 * inner, *values.shape[1:])

    bias = None if gate_up.bias is None else mixed(gate_up.bias)
    return Linear(mixed(gate_up.weight), bias)
