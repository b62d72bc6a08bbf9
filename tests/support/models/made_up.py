"""Kinds of weight and a backend that the packages do not know, made as later ones will be."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.backends import TorchBackend
from tokenbus.engine.models.linear_weight import PlainWeight
from tokenbus.engine.models.ops import TORCH_PRODUCTS, TorchOps
from tokenbus.engine.models.product import Product, ProductTable, TorchProduct, entry_of
from tokenbus.engine.weights.readers import LinearReading, LinearShape, PlainReader
from tokenbus.engine.weights.slots import MemorySlot

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext
    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.models.decoder_config import DecoderConfig
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.engine.weights.slots import Slot


@dataclass(frozen=True, slots=True)
class NegatedWeight:
    """Numbers with the wrong sign; values: [out, in]."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes

    def dequantised(self) -> Tensor:
        """Return the opposite of the values, [out, in] float32."""
        return -self.values.float()


@dataclass(frozen=True, slots=True)
class HalvedWeight:
    """Outputs in two halves, each of any kind: a weight around weights, as a shard's is."""

    first: LinearWeight
    second: LinearWeight

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.first.shape[0] + self.second.shape[0], self.first.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of both halves."""
        return self.first.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.first.nbytes + self.second.nbytes

    def dequantised(self) -> Tensor:
        """Return both halves, [out, in] float32."""
        return torch.cat((self.first.dequantised(), self.second.dequantised()))


@dataclass(frozen=True, slots=True)
class ScaledWeight:
    """Numbers with a factor per output, which the checkpoint has too; factors: [out, 1]."""

    values: Tensor
    factors: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return self.values.shape[0], self.values.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Return the dtype of the values."""
        return self.values.dtype

    @property
    def nbytes(self) -> int:
        """Bytes that one product reads."""
        return self.values.nbytes + self.factors.nbytes

    def dequantised(self) -> Tensor:
        """Return value * factor, [out, in] float32."""
        return self.values.float() * self.factors.float()


class NegatingReader(PlainReader):
    """Turns the sign of every weight."""

    name = "negated"
    is_plain = False

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:
        """Return the opposite."""
        del shape
        return NegatedWeight(-values)


class HalvingReader(PlainReader):
    """Cuts every weight in two, and turns the sign of the second half."""

    name = "halved"
    is_plain = False

    def kind_of(self, values: Tensor, shape: LinearShape) -> LinearWeight:
        """Return both halves."""
        half = shape.num_outputs // 2
        return HalvedWeight(PlainWeight(values[:half]), NegatedWeight(-values[half:]))


class ScaledReader(PlainReader):
    """Reads checkpoints that have a factor per output beside every matrix but the head."""

    name = "scaled"
    is_plain = False

    def open(self, shape: LinearShape) -> LinearReading:
        """Allocate a matrix and its factors."""
        return super().open(shape) if shape.is_head else _ScaledReading(shape)


class _ScaledReading:
    def __init__(self, shape: LinearShape) -> None:
        self._values = torch.empty(shape.num_outputs, shape.num_inputs, dtype=shape.dtype)
        self._factors = torch.empty(shape.num_outputs, 1, dtype=shape.dtype)
        self.parts: dict[str, Slot] = {}
        start = 0
        for name, size in shape.parts:
            for part, memory in (("weight", self._values), ("factors", self._factors)):
                rows = memory[start : start + size]
                slot = MemorySlot(tuple(rows.shape), partial(_given, rows))
                self.parts[f"{name}.{part}"] = slot
            start += size

    def draw(self, std: float) -> None:
        self._values.normal_(std=std)
        self._factors.fill_(1.0)

    def finish(self) -> LinearWeight:
        return ScaledWeight(self._values, self._factors)


def _given(rows: Tensor) -> Tensor:
    return rows


class NegatedProduct(Product):
    """The opposite of a product."""

    def __init__(self, weight: NegatedWeight, bias: Tensor | None) -> None:
        self._opposite = TorchProduct(weight.values, None if bias is None else -bias)

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        return -self._opposite.multiply(x)


class HalvedProduct(Product):
    """Two products side by side, each by what its kind is bound to."""

    def __init__(self, weight: HalvedWeight, bias: Tensor | None) -> None:
        assert bias is None
        self._halves = [
            entry_of(MADE_UP_PRODUCTS, half)(half, None) for half in (weight.first, weight.second)
        ]

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        return torch.cat([half.multiply(x) for half in self._halves], -1)


class ScaledProduct(Product):
    """A product whose factors come behind it."""

    def __init__(self, weight: ScaledWeight, bias: Tensor | None) -> None:
        assert bias is None
        self._product = TorchProduct(weight.values, None)
        self._factors = weight.factors[:, 0]

    def multiply(self, x: Tensor) -> Tensor:
        """x: [T, in] -> [T, out], dtype of x."""
        return self._product.multiply(x) * self._factors


MADE_UP_PRODUCTS: ProductTable = {
    **TORCH_PRODUCTS,
    NegatedWeight: NegatedProduct,
    HalvedWeight: HalvedProduct,
    ScaledWeight: ScaledProduct,
}


class CountingAttention:
    """Plain attention that counts its calls and sees pages of the backend's size alone."""

    def __init__(self, page_size: int) -> None:
        self.page_size = page_size
        self.num_calls = 0
        self._attention = TorchAttention()

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, spec: AttentionSpec, ctx: ForwardContext
    ) -> Tensor:
        """Store k, v of this pass in their slots, then attend causally over the pages."""
        assert ctx.kv.page_size == self.page_size
        self.num_calls += 1
        return self._attention.attend(q, k, v, spec, ctx)


@dataclass(frozen=True, slots=True, kw_only=True)
class MadeUpBackend(TorchBackend):
    """Plain torch with an attention of its own and small pages, which runs one step ahead."""

    attention: CountingAttention
    page_size: int = 8
    runs_ahead: bool = True

    def ops(self, shape: DecoderConfig, dtype: torch.dtype) -> TorchOps:
        """Return the steps with the made-up kinds of weight."""
        del shape, dtype
        return TorchOps(self.attention, MADE_UP_PRODUCTS)


def made_up_backend() -> MadeUpBackend:
    """Return the backend with an attention that has counted nothing."""
    return MadeUpBackend(device=torch.device("cpu"), attention=CountingAttention(page_size=8))
