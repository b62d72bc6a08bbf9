"""A mixture of experts on a CPU: its router in torch, its experts by the compiled kernels."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F

from tokenbus.engine.models.experts.torch_experts import RoutedMixture
from tokenbus.engine.models.linear_weight import without_storage
from tokenbus.engine.models.native_forms import (
    ACTIVATIONS,
    NATIVE_KINDS,
    WIDENED_HERE,
    interleaved,
)
from tokenbus.engine.models.product import MixtureBinder, entry_of
from tokenbus.kernels.cpu.native import DTYPES, ExpertsArgs, LinearArgs, SortedPairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.engine.models.decoder_config import Activation, DecoderConfig
    from tokenbus.engine.models.experts.torch_experts import Routed
    from tokenbus.engine.models.layers import Linear, Mixture
    from tokenbus.kernels.cpu.native import NativeLibrary


class _Stack(NamedTuple):
    """Packed matrices of all experts, one behind the other; what holds their memory with them."""

    first: LinearArgs
    expert_bytes: int
    owned: tuple[Tensor | None, ...]


class NativeMixture(RoutedMixture):
    """Rows sorted by expert, each weight read once by one thread.

    Experts are chosen in torch, whose order among equal ones transformers shares.
    """

    def __init__(self, mixture: Mixture, activation: Activation, library: NativeLibrary) -> None:
        """Pack a mixture's experts; the storage that they came with is dropped."""
        super().__init__(mixture, activation)
        self._library, self._dtype = library, mixture.router.dtype
        width, inner = library.panel_width, mixture.shape.intermediate_size
        half = -(-inner // width) * width
        gate_up = self._pack(mixture.gate_up, lambda rows: interleaved(rows, half, width))
        down = self._pack(mixture.down, lambda rows: rows)
        self._owned = gate_up.owned + down.owned  # What the structure below points to.
        self._experts = ExpertsArgs(
            gate_up.first, down.first, gate_up.expert_bytes, down.expert_bytes,
            mixture.shape.num_experts, inner, ACTIVATIONS[activation],
        )  # fmt: skip

    @staticmethod
    def supports(config: DecoderConfig, dtype: torch.dtype) -> bool:
        """Tell whether the kernels cover a model's experts; pairs of inputs are multiplied."""
        mixture = config.mixture
        if mixture is None or dtype not in DTYPES:
            return False
        return all(size % 2 == 0 for size in (config.hidden_size, mixture.intermediate_size))

    def of_experts(self, x: Tensor, routed: Routed) -> Tensor:
        """x: [T, H] -> [T, H] float32: of each token the weighted sum of its experts."""
        top_k = routed.weights.shape[1]
        places = torch.empty_like(routed.pairs)
        places[routed.pairs] = torch.arange(len(places))
        pairs = SortedPairs(
            F.pad(routed.counts.cumsum(0), (1, 0)).int(),
            (routed.pairs // top_k).int(),
            places.view(-1, top_k).int(),
            routed.weights.float().contiguous(),
        )
        return self._library.experts(x, self._experts, pairs)

    def _pack(self, stack: Linear, arrange: Callable[[Tensor], Tensor]) -> _Stack:
        """Pack each expert's matrix by itself, its rows arranged."""
        library, num_experts = self._library, self._mixture.shape.num_experts
        weight, kind = stack.weight, entry_of(NATIVE_KINDS, stack.weight)
        num_inputs, num_rows = weight.shape[1], weight.shape[0] // num_experts
        form = kind.form(weight)
        num_outputs = len(arrange(form.values[:num_rows]))
        size = library.packed_bytes((num_outputs, num_inputs), kind.format, self._dtype)
        packed = torch.empty(size * num_experts, dtype=torch.uint8)
        library.use_huge_pages(packed)
        scales: list[Tensor] = []
        for expert in range(num_experts):
            own = form.map(partial(_of_expert, expert, num_rows)).map(arrange)
            library.pack(
                own.values.contiguous(), packed[size * expert :], kind.format, self._dtype,
                groups=own.groups,
            )  # fmt: skip
            if own.scales is not None:
                scales.append(F.pad(own.scales.float(), (0, -num_outputs % library.panel_width)))
        stack.weight = without_storage(weight)
        all_scales = torch.cat(scales) if scales else None
        first = LinearArgs(
            packed.data_ptr(), None, None if all_scales is None else all_scales.data_ptr(),
            num_inputs, num_outputs, kind.format,
        )  # fmt: skip
        return _Stack(first, size, (packed, all_scales))


def native_mixtures(library: NativeLibrary) -> MixtureBinder:
    """Return what binds mixtures to a library."""
    return MixtureBinder(partial(NativeMixture, library=library), WIDENED_HERE, is_native=True)


def _of_expert(expert: int, num_rows: int, rows: Tensor) -> Tensor:
    """Return an expert's rows of a stack."""
    return rows[expert * num_rows : (expert + 1) * num_rows]
