"""Gated activations: act(gate) * up from one fused projection."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    release_successor,
    require,
    require_contiguous,
    wait_for_inputs,
)

if TYPE_CHECKING:
    from torch import Tensor

ActivationKind = Literal["silu", "gelu_tanh"]
KINDS: tuple[ActivationKind, ...] = ("silu", "gelu_tanh")
_IS_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


_SIGMOID = tl.constexpr(
    """
    {
        mul.f32 $0, $1, 0fBFB8AA3B;
        ex2.approx.ftz.f32 $0, $0;
        add.f32 $0, $0, 0f3F800000;
        rcp.approx.ftz.f32 $0, $0;
    }
    """
)


@triton.jit
def _sigmoid(value):
    """Return 1 / (1 + exp(-value)), by four instructions on a GPU.

    Both steps err by a unit or two in the last place. A division and an exponential that spare no
    digits take 20 instructions, and rounding the gates of prompts twice as long as their bytes.
    """
    if _IS_INTERPRETED:
        return 1.0 / (1.0 + tl.exp(-value))
    return tl.inline_asm_elementwise(
        _SIGMOID, "=&f,f", [value], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def gate(value, KIND: tl.constexpr):
    """Apply silu or tanh-approximated gelu to an fp32 tile."""
    if KIND == "silu":
        return value * _sigmoid(value)
    # gelu(x) = x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 x^3)), the tanh form rewritten.
    return value * _sigmoid(1.5957691216057308 * (value + 0.044715 * value * value * value))


@triton.jit
def _gated_act_kernel(
    gate_up, out, width, BLOCK: tl.constexpr, KIND: tl.constexpr, PDL: tl.constexpr
):
    release_successor(PDL)
    row = tl.program_id(0).to(tl.int64)
    offs = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = offs < width
    wait_for_inputs(PDL)
    source = gate_up + row * 2 * width + offs
    gated = gate(tl.load(source, mask=mask, other=0.0).to(tl.float32), KIND)
    up = tl.load(source + width, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + row * width + offs, (gated * up).to(out.dtype.element_ty), mask=mask)


def gated_act(gate_up: Tensor, kind: ActivationKind = "silu") -> Tensor:
    """Return act(gate) * up.

    Args: gate_up: [T, 2 I], contiguous, gates first. kind: `silu` or `gelu_tanh`.
    Returns: [T, I], dtype of gate_up, computed in fp32. Twin: reference.gated_act.
    Raises: KernelInputError for an odd width or an unknown kind.
    """
    num_tokens, double = gate_up.shape
    require_contiguous(gate_up=gate_up)
    require(double % 2 == 0, f"gate_up is {double} wide")
    require(kind in KINDS, f"unknown activation {kind!r}, have {KINDS}")
    out = gate_up.new_empty(num_tokens, double // 2)
    if num_tokens:
        block = 1024
        _gated_act_kernel[(num_tokens, ceil_div(double // 2, block))](
            gate_up,
            out,
            double // 2,
            BLOCK=block,
            KIND=kind,
            num_warps=4,
            **dependent_launch(gate_up.device),
        )
    return out
