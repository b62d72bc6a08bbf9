"""Native ops: the decoder's pass on a CPU in one call, by kernels compiled for the machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from tokenbus.engine.attention.native_attention import NativeAttention, shape_args
from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.models.layers import GatedMLP
from tokenbus.engine.models.linear_weight import Fp8Weight, without_storage
from tokenbus.engine.models.native.native_forms import (
    ACTIVATIONS,
    NATIVE_KINDS,
    WIDENED_HERE,
    NativeKind,
    interleaved,
)
from tokenbus.engine.models.ops import TorchOps, tell_of_widened
from tokenbus.engine.models.product import entry_of
from tokenbus.kernels.cpu.native import (
    DTYPES,
    LayerArgs,
    LinearArgs,
    ModelArgs,
    NativeLibrary,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors, Linear
    from tokenbus.engine.models.linear_weight import LinearWeight

# Packed weights begin on lines of the cache.
_ALIGNMENT = 64


class NativeOps(TorchOps):
    """All layers, whatever their family's layout, in one call of compiled code per pass.

    The steps in torch are not used: the weights are packed, and their storage is dropped.
    """

    attention: NativeAttention

    def __init__(
        self, attention: NativeAttention, kinds: Mapping[type[Any], NativeKind] = NATIVE_KINDS
    ) -> None:
        """Attend through `attention`, multiply by the kinds of weight in `kinds`."""
        super().__init__(attention)
        self._kinds = kinds
        self._library: NativeLibrary = attention.library
        self._model: ModelArgs | None = None
        self._layers: Any = None
        self._head: LinearArgs | None = None
        self._dtype = torch.float32
        self._used = 0
        self._kv: KVCache | None = None
        # Memory that the structures point to.
        self._owned: list[Tensor] = []

    @staticmethod
    def supports(config: DecoderConfig, dtype: torch.dtype) -> bool:
        """Tell whether the kernels cover a model: bfloat16 is multiplied in pairs of inputs."""
        sizes = (config.hidden_size, config.intermediate_size, config.num_heads * config.head_dim)
        return dtype in DTYPES and config.mixture is None and all(size % 2 == 0 for size in sizes)

    def prepare(self, tensors: DecoderTensors) -> None:
        """Pack every weight and drop the storage it came with.

        Raises: ModelUnsupported for a size, a dtype or a kind of weight that the kernels do not
            have.
        """
        config, self._dtype = tensors.config, tensors.embedding.dtype
        if not self.supports(config, self._dtype):
            raise ModelUnsupported(f"the CPU's kernels cover no {self._dtype} like this")
        # FP8 weights keep their scales and take the room of bfloat16 all the same.
        tell_of_widened(tensors, (Fp8Weight, *WIDENED_HERE))
        width = self._library.panel_width
        # Gate and up are filled up to whole panels each.
        inner = -(-config.intermediate_size // width) * width
        self._layers = (LayerArgs * len(tensors.layers))()
        head = tensors.lm_head.weight
        total = self._arena_bytes(head, head.shape[0])
        for layer in tensors.layers:
            total += sum(
                self._arena_bytes(linear.weight, linear.weight.shape[0])
                for linear in (layer.qkv, layer.o, _mlp(layer).down)
            )
            total += self._arena_bytes(_mlp(layer).gate_up.weight, 2 * inner)
        self._arena = torch.empty(total, dtype=torch.uint8)
        self._library.use_huge_pages(self._arena)
        for args, layer in zip(self._layers, tensors.layers, strict=True):
            self._describe(args, layer, inner)
        self._head = self._pack(tensors.lm_head)
        self._model = ModelArgs(
            self._layers, len(tensors.layers), config.hidden_size, config.intermediate_size,
            ACTIVATIONS[config.activation], config.norm_eps, config.residual_scale,
        )  # fmt: skip

    def logits(
        self, hidden: Tensor, norm: Tensor, eps: float, head: Linear, *, exact: bool
    ) -> Tensor:
        """hidden: [M, H] -> head(rms_norm(hidden)), [M, V] float32, until the next call."""
        del exact, head
        assert self._head is not None
        return self._library.linear(hidden, self._head, norm.float(), eps, self._dtype)

    def run_layers(self, tensors: DecoderTensors, hidden: Tensor, ctx: ForwardContext) -> Tensor:  # noqa: ARG002
        """Take hidden [T, H] through all layers, the sum of which is kept in float32."""
        assert self._model is not None
        if self._kv is not ctx.kv:
            self._attach(ctx.kv)
        hidden = hidden.float()
        self._library.forward(self._model, self.attention.batch_args(ctx), hidden, self._dtype)
        return hidden

    def _attach(self, kv: KVCache) -> None:
        for args, k_pages, v_pages in zip(self._layers, kv.k, kv.v, strict=True):
            args.k_pages, args.v_pages = k_pages.data_ptr(), v_pages.data_ptr()
            args.shape.page_size = kv.page_size
            self._library.use_huge_pages(k_pages)
            self._library.use_huge_pages(v_pages)
        self._kv = kv

    def _describe(self, args: LayerArgs, layer: DecoderLayer, inner: int) -> None:
        args.qkv, args.o = self._pack(layer.qkv), self._pack(layer.o)
        args.gate_up = self._pack(_mlp(layer).gate_up, half=inner)
        args.down = self._pack(_mlp(layer).down)
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

    def _arena_bytes(self, weight: LinearWeight, num_outputs: int) -> int:
        """Bytes that a weight takes once it is packed with so many outputs."""
        shape, kind = (num_outputs, weight.shape[1]), entry_of(self._kinds, weight)
        size = self._library.packed_bytes(shape, kind.format, self._dtype)
        return -(-size // _ALIGNMENT) * _ALIGNMENT

    def _pack(self, linear: Linear, *, half: int | None = None) -> LinearArgs:
        """Pack a weight; with `half`, gate and up of so many outputs each, panel by panel."""
        weight, bias = linear.weight, linear.bias
        kind, (num_outputs, num_inputs) = entry_of(self._kinds, weight), weight.shape
        form = kind.form(weight)
        if half is not None:
            num_outputs, width = 2 * half, self._library.panel_width
            form = form.map(lambda rows: interleaved(rows, half, width))
            bias = None if bias is None else interleaved(bias, half, width)
        packed = self._arena[self._used :]
        self._used += self._arena_bytes(weight, num_outputs)
        self._library.pack(
            form.values.contiguous(), packed, kind.format, self._dtype, groups=form.groups
        )
        linear.weight = without_storage(weight)
        return LinearArgs(
            packed.data_ptr(), self._panel_floats(bias, num_outputs),
            self._panel_floats(form.scales, num_outputs), num_inputs, num_outputs, kind.format,
        )  # fmt: skip

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


def _mlp(layer: DecoderLayer) -> GatedMLP:
    """Return the layer's MLP; models with mixtures are not covered."""
    assert isinstance(layer.mlp, GatedMLP)
    return layer.mlp
