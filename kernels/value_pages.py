"""Values of many tokens rounded into pages of FP8, which hold tokens innermost."""

# mypy: disable-error-code="import-untyped,no-untyped-def,no-untyped-call,untyped-decorator"
from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from tokenbus.kernels.launch import (
    ceil_div,
    dependent_launch,
    next_power_of_2,
    release_successor,
    wait_for_inputs,
)
from tokenbus.kernels.quantize import magnitude, nearest_number, page_bytes, scales_of_top

if TYPE_CHECKING:
    from torch import Tensor

# Tokens of a program: as many bytes of one dim lie side by side where their slots do.
_TOKENS = 32


@triton.jit(do_not_specialize=["num_tokens"], do_not_specialize_on_alignment=["slots"])
def _value_pages_kernel(
    rows, bias, slots, pages, scales, num_tokens, width, column, page_stride, HKV: tl.constexpr,
    D: tl.constexpr, S: tl.constexpr, TOKENS: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    release_successor(PDL)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    live = tokens < num_tokens
    columns = column + head * D + dims
    mask = live[:, None] & (dims < D)[None, :]
    wait_for_inputs(PDL)
    slot = tl.load(slots + tokens, mask=live, other=0)
    place = rows + tokens.to(tl.int64)[:, None] * width + columns[None, :]
    value = tl.load(place, mask=mask, other=0.0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + columns, mask=dims < D, other=0.0).to(tl.float32)[None, :]
    scale, inverse = scales_of_top(tl.max(magnitude(value), axis=1))
    number = nearest_number(value, inverse[:, None])
    rounded = page_bytes(number)
    tl.store(place, (number * scale[:, None]).to(rows.dtype.element_ty), mask=mask)
    tl.store(scales + slot // S * (HKV * S) + head * S + slot % S, scale, mask=live)
    block = slot // S * page_stride + head * (S * D) + slot % S
    # Nothing is known to be contiguous here, and then the compiler gives neighbouring threads
    # the first axis: 32 tokens of a dim are one store.
    tl.store(pages + block[:, None] + dims[None, :] * S, rounded, mask=mask)


def write_values(
    qkv: Tensor, bias: Tensor | None, slot_mapping: Tensor, v_pages: Tensor, v_scales: Tensor,
    *, num_heads: int,
) -> None:  # fmt: skip
    """Round the values of qkv into their slots, and in place to what they then stand for.

    Args: as of `qkv_rope`, with v_pages [P, Hkv, D, S] in FP8 and v_scales [P, Hkv, S].
    """
    num_tokens, width = qkv.shape
    _, num_kv_heads, head_dim, page_size = v_pages.shape
    _value_pages_kernel[(ceil_div(num_tokens, _TOKENS), num_kv_heads)](
        qkv,
        bias,
        slot_mapping,
        v_pages,
        v_scales,
        num_tokens,
        width,
        (num_heads + num_kv_heads) * head_dim,
        v_pages.stride(0),
        HKV=num_kv_heads,
        D=head_dim,
        S=page_size,
        TOKENS=_TOKENS,
        BLOCK_D=next_power_of_2(head_dim),
        HAS_BIAS=bias is not None,
        num_warps=4,
        **dependent_launch(qkv.device),
    )
