"""Scores of experts: by which a router chooses, the lower number first where two are equal.

Softmax in float32, and whole numbers that sort as `torch.topk` chooses on a GPU.
"""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tokenbus.kernels.launch import next_power_of_2, require

if TYPE_CHECKING:
    from torch import Tensor

_LAST = tl.constexpr(0x7FFFFFFF)
# Below every score.
NO_SCORE = tl.constexpr(-(2**31))


@dataclass(frozen=True, slots=True)
class RouterRule:
    """How a router chooses.

    num_experts, top_k: of so many experts a row goes to so many; renormalise: the weights of those
    chosen are divided by their sum; by_logits: those with the largest logits are chosen, which may
    differ where their softmax is equal; is_uniform: a hash of the row's logits chooses in place of
    them, so that every expert is equally likely (benchmarks).
    """

    num_experts: int
    top_k: int
    renormalise: bool = True
    by_logits: bool = False
    is_uniform: bool = False

    def options(self) -> dict[str, bool | int]:
        """Return what kernels are compiled for, whatever rows there are."""
        return {
            "TOP": self.top_k,
            "BLOCK_E": next_power_of_2(self.num_experts),
            "RENORMALISE": self.renormalise,
            "BY_LOGITS": self.by_logits,
            "UNIFORM": self.is_uniform,
        }


@triton.jit
def _mixed(bits):
    """Scramble numbers of 32 bits; each bit of a result depends on all bits of its number."""
    bits = (bits ^ (bits >> 16)) * 0x7FEB352D
    bits = (bits ^ (bits >> 15)) * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def _uniform(value, e, live):
    """Replace logits by numbers of 0 to 1 that depend on the whole row and the expert."""
    bits = value.to(tl.uint32, bitcast=True)
    own = _mixed(bits + e.to(tl.uint32) * 0x9E3779B1)
    row = tl.xor_sum(tl.where(live, own, 0).to(tl.int32, bitcast=True), axis=0)
    drawn = _mixed(row.to(tl.uint32, bitcast=True) + e.to(tl.uint32) * 0x85EBCA6B)
    return (drawn >> 8).to(tl.float32) * (1.0 / 16777216.0)


@triton.jit
def scores_of(logits, E, BLOCK_E: tl.constexpr, BY_LOGITS: tl.constexpr, UNIFORM: tl.constexpr):
    """Return the softmax of a row, [BLOCK_E] float32, and what sorts as it is chosen, int32.

    NaN sorts first, as it does in torch; what is no expert last.
    """
    e = tl.arange(0, BLOCK_E)
    live = e < E
    value = tl.load(logits + e, mask=live, other=0.0).to(tl.float32)
    if UNIFORM:
        value = _uniform(value, e, live)
    top = tl.max(tl.where(live, value, float("-inf")), axis=0)
    share = tl.where(live, tl.exp(value - top), 0.0)
    share = tl.div_rn(share, tl.zeros_like(share) + tl.sum(share, axis=0))
    score = value if BY_LOGITS else share
    # Minus zero equals zero.
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    ordered = bits ^ ((bits >> 31) & _LAST)
    ordered = tl.where(score != score, _LAST, ordered)  # noqa: PLR0124 # NaN
    return share, tl.where(live, ordered, NO_SCORE)


def check_logits(logits: Tensor, rule: RouterRule) -> None:
    """Refuse logits that no router with this rule gives. Raises: KernelInputError."""
    columns = logits.shape[1]
    require(logits.stride(1) == 1, f"logits have strides {logits.stride()}")
    require(
        1 <= rule.top_k <= rule.num_experts <= columns,
        f"{rule.top_k} of {rule.num_experts} experts, from {columns} logits",
    )
