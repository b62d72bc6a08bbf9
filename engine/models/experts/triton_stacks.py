"""The experts of a mixture on a GPU, by the kind that their weights are stored as."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Generic, TypeVar

from tokenbus.engine.models.experts.torch_experts import stacked_values
from tokenbus.engine.models.linear_weight import Fp8BlockWeight, Fp8Weight
from tokenbus.kernels.experts.fp8_grouped import fp8_experts_down, fp8_experts_up
from tokenbus.kernels.experts.fp8_stack import Fp8Stack
from tokenbus.kernels.experts.grouped import experts_down, experts_up
from tokenbus.kernels.experts.lone_row import lone_row_down, lone_row_up
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.quantize import GROUP, quantize_groups, quantize_rows

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.models.layers import Mixture
    from tokenbus.engine.models.linear_weight import LinearWeight
    from tokenbus.kernels.activation import ActivationKind
    from tokenbus.kernels.experts.combine import Beside
    from tokenbus.kernels.experts.grouped import Work
    from tokenbus.kernels.experts.router import FewRows
    from tokenbus.kernels.quantize import QuantizedRows


_Stack = TypeVar("_Stack", "Tensor", Fp8Stack)


class Experts(ABC, Generic[_Stack]):
    """The matrices of all experts, bound to the kernels that multiply by them."""

    # Whether several rows are rounded to FP8 with a scale each.
    rounds_rows = False

    def __init__(
        self, stacks: tuple[_Stack, _Stack], mixture: Mixture, act: ActivationKind
    ) -> None:
        """Take stacks of gates with what they gate, and of what is behind them."""
        self._gate_up: _Stack = stacks[0]
        self._down: _Stack = stacks[1]
        self._width, self._inner = mixture.router.shape[1], mixture.shape.intermediate_size
        self._act = act

    def of_lone_row(self, few: FewRows, beside: Beside) -> Tensor:
        """Return the weighted sum of a lone row's experts and what stands beside it, [1, H]."""
        acted = lone_row_up(
            few.rows, few.chosen, self._gate_up, self._inner, self._act, watch=few.watch
        )
        return lone_row_down(acted, few.chosen, self._down, self._width, beside)

    @abstractmethod
    def of_pairs(self, x: Tensor, work: Work, rounded: QuantizedRows | None = None) -> Tensor:
        """x: [T, H] -> [T * top_k, H]: each row's experts, one after the other, not weighted.

        rounded: x in FP8, for experts that round rows, if someone has rounded them already.
        """


class PlainExperts(Experts["Tensor"]):
    """Numbers of the model's dtype; other kinds are widened to them."""

    def of_pairs(self, x: Tensor, work: Work, rounded: QuantizedRows | None = None) -> Tensor:
        """x: [T, H] -> [T * top_k, H]: each row's experts, one after the other, not weighted."""
        del rounded
        acted = experts_up(x, self._gate_up, self._inner, work, self._act)
        return experts_down(acted, self._down, self._width, work)


class Fp8Experts(Experts[Fp8Stack]):
    """FP8 weights: a lone row is multiplied as it is, more are rounded to FP8."""

    def __init__(
        self, stacks: tuple[Fp8Stack, Fp8Stack], mixture: Mixture, act: ActivationKind
    ) -> None:
        """Take stacks of gates with what they gate, and of what is behind them."""
        super().__init__(stacks, mixture, act)
        self.rounds_rows = stacks[0].block_outputs == 0

    def of_pairs(self, x: Tensor, work: Work, rounded: QuantizedRows | None = None) -> Tensor:
        """x: [T, H] -> [T * top_k, H]: each row's experts, one after the other, not weighted."""
        if not self.rounds_rows:
            rounded = quantize_groups(x.contiguous())
        elif rounded is None:
            rounded = quantize_rows(x.contiguous())
        acted = fp8_experts_up(rounded, self._gate_up, self._inner, work, self._act)
        return fp8_experts_down(acted, self._down, self._width, work, x.dtype)


def bound_experts(mixture: Mixture, act: ActivationKind) -> PlainExperts | Fp8Experts:
    """Bind a mixture's stacks to the kernels of their kind."""
    width, inner = mixture.router.shape[1], mixture.shape.intermediate_size
    gate_up = _fp8_stack(mixture.gate_up.weight, width, 2 * inner)
    down = _fp8_stack(mixture.down.weight, inner, width)
    if gate_up is None or down is None:
        values = stacked_values(mixture.gate_up.weight), stacked_values(mixture.down.weight)
        return PlainExperts(values, mixture, act)
    return Fp8Experts((gate_up, down), mixture, act)


def _fp8_stack(weight: LinearWeight, inputs: int, outputs: int) -> Fp8Stack | None:
    """Return a stack as the kernels take it, None for kinds and sizes that they do not."""
    if isinstance(weight, Fp8Weight):
        stack = Fp8Stack(weight.values, weight.scales)
    elif isinstance(weight, Fp8BlockWeight) and weight.block_inputs == GROUP:
        stack = Fp8Stack(weight.values, weight.scales, weight.block_outputs)
    else:
        return None
    try:
        stack.check_product(inputs, outputs)
    except KernelInputError:
        return None
    return stack
