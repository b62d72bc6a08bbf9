"""The decoder's steps on a CPU, with weights packed once for oneDNN."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.models.linear_weight import PlainWeight, without_storage
from tokenbus.engine.models.ops import WIDENED_KINDS, TorchOps, tell_of_widened, widened
from tokenbus.engine.models.product import Product, ProductTable

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import PagedAttention
    from tokenbus.engine.models.layers import DecoderTensors

# Rows that the packed layout is chosen for. Layouts of 1, 16, 32 and 128 rows ran equally fast at
# 1, 24 and 128 rows (2 x Zen 5, bf16, 576 x 960 to 576 x 3072).
_PACKED_FOR_ROWS = 32


class PackedProduct(Product):
    """A plain weight packed once.

    `F.linear` lays a bf16 weight out anew in every call. Packed once, on 2 cores and SmolLM2-135M
    shapes, a linear runs 1.6 to 2.1 times faster at 1 row and 1.3 times at 24.
    """

    def __init__(self, values: Tensor, bias: Tensor | None) -> None:
        self._packed = torch.ops.mkldnn._reorder_linear_weight(values, _PACKED_FOR_ROWS)
        self._bias = bias

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self._packed, self._bias, "none", [], ""
        )
        return out


PACKED_PRODUCTS: ProductTable = {
    PlainWeight: lambda weight, bias: PackedProduct(weight.values, bias),
    **dict.fromkeys(WIDENED_KINDS, lambda weight, bias: PackedProduct(widened(weight), bias)),
}


class PackedOps(TorchOps):
    """TorchOps whose linears multiply by prepacked weights."""

    def __init__(self, attention: PagedAttention, products: ProductTable = PACKED_PRODUCTS) -> None:
        super().__init__(attention, products)

    @staticmethod
    def supports(dtype: torch.dtype, device: torch.device) -> bool:
        """Tell whether this build of torch packs weights of this dtype."""
        packs = hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
        bf16_units = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return packs and device.type == "cpu" and dtype == torch.bfloat16 and bool(bf16_units)

    def prepare(self, tensors: DecoderTensors) -> None:
        """Pack every weight; the plain one is dropped."""
        tell_of_widened(tensors)
        for linear in tensors.linears():
            self._bind(linear)
            linear.weight = without_storage(linear.weight)
        self._bind_mixtures(tensors)
