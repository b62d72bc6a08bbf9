"""The compiled kernels as Python sees them: structures of pointers, and calls without the GIL.

It is one file because its structures mirror those of the sources, field by field, for these calls.
"""

from __future__ import annotations

import ctypes
from ctypes import (
    POINTER,
    Structure,
    byref,
    c_float,
    c_int,
    c_int32,
    c_int64,
    c_size_t,
    c_void_p,
)
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

DTYPES = {torch.float32: 0, torch.bfloat16: 1}


# Inputs that share a scale and a low: `kGroupInputs` of nibbles.h.
INT4_GROUP_INPUTS = 32


class WeightFormat(IntEnum):
    """How a packed weight is kept: in the model's dtype, or rounded (see nibbles.h for INT4)."""

    PLAIN = 0
    INT8 = 1
    INT4 = 2


class LinearArgs(Structure):
    """`Linear` of multiply.h."""

    _fields_ = (
        ("weight", c_void_p),
        ("bias", c_void_p),
        ("scales", c_void_p),
        ("num_inputs", c_int32),
        ("num_outputs", c_int32),
        ("format", c_int32),
    )


class ShapeArgs(Structure):
    """`AttentionShape` of pages.h."""

    _fields_ = (
        ("num_heads", c_int32),
        ("num_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("page_size", c_int32),
        ("window", c_int32),
        ("scale", c_float),
        ("softcap", c_float),
    )


class RunArgs(Structure):
    """`Run` of pages.h."""

    _fields_ = (
        ("first_member", c_int32),
        ("num_members", c_int32),
        ("first_page", c_int32),
        ("end_page", c_int32),
    )


class BatchArgs(Structure):
    """`Batch` of pages.h."""

    _fields_ = (
        ("num_tokens", c_int32),
        ("num_seqs", c_int32),
        ("table_stride", c_int32),
        ("num_threads", c_int32),
        ("positions", c_void_p),
        ("slots", c_void_p),
        ("block_table", c_void_p),
        ("context_lens", c_void_p),
        ("query_starts", c_void_p),
        ("runs", POINTER(RunArgs)),
        ("members", POINTER(c_int32)),
        ("num_runs", c_int32),
    )


class LayerArgs(Structure):
    """`Layer` of decoder.h."""

    _fields_ = (
        ("qkv", LinearArgs),
        ("o", LinearArgs),
        ("gate_up", LinearArgs),
        ("down", LinearArgs),
        ("pre_attention_norm", c_void_p),
        ("post_attention_norm", c_void_p),
        ("pre_mlp_norm", c_void_p),
        ("post_mlp_norm", c_void_p),
        ("q_norm", c_void_p),
        ("k_norm", c_void_p),
        ("cos", c_void_p),
        ("sin", c_void_p),
        ("k_pages", c_void_p),
        ("v_pages", c_void_p),
        ("shape", ShapeArgs),
        ("rot_dim", c_int32),
        ("q_norm_size", c_int32),
        ("k_norm_size", c_int32),
    )


class ModelArgs(Structure):
    """`Model` of decoder.h."""

    _fields_ = (
        ("layers", POINTER(LayerArgs)),
        ("num_layers", c_int32),
        ("hidden_size", c_int32),
        ("inner_size", c_int32),
        ("activation", c_int32),
        ("norm_eps", c_float),
        ("residual_scale", c_float),
    )


class ExpertsArgs(Structure):
    """`Experts` of experts.h."""

    _fields_ = (
        ("gate_up", LinearArgs),
        ("down", LinearArgs),
        ("gate_up_bytes", c_int64),
        ("down_bytes", c_int64),
        ("num_experts", c_int32),
        ("inner_size", c_int32),
        ("activation", c_int32),
    )


class PairsArgs(Structure):
    """`Pairs` of experts.h."""

    _fields_ = (
        ("num_rows", c_int32),
        ("top_k", c_int32),
        ("starts", c_void_p),
        ("rows", c_void_p),
        ("places", c_void_p),
        ("weights", c_void_p),
    )


class SortedPairs(NamedTuple):
    """Pairs of a row and an expert, sorted by expert; all int32 but the weights, contiguous.

    starts: [E + 1], the first pair of each expert. rows: [T * top_k], the row of each pair.
    places: [T, top_k], where the pairs of a row are. weights: [T, top_k] float32.
    """

    starts: Tensor
    rows: Tensor
    places: Tensor
    weights: Tensor


class NativeLibrary:
    """A loaded library and the memory that its passes work in; not for two threads at once."""

    def __init__(self, path: Path) -> None:
        # Loaded after torch, the library's OpenMP is torch's: one team of threads, not two.
        self._c = ctypes.CDLL(str(path))
        self._c.tokenbus_workspace_new.restype = c_void_p
        self._c.tokenbus_workspace_delete.argtypes = (c_void_p,)
        self._c.tokenbus_use_huge_pages.argtypes = (c_void_p, c_size_t)
        self._c.tokenbus_packed_bytes.argtypes = (c_int, c_int, c_int, c_int)
        self._c.tokenbus_packed_bytes.restype = c_size_t
        self._c.tokenbus_pack.argtypes = (
            c_int, c_int, c_void_p, c_int, c_int, c_void_p, c_void_p, c_void_p, c_int,
        )  # fmt: skip
        self._c.tokenbus_forward.argtypes = (
            c_int, POINTER(ModelArgs), POINTER(BatchArgs), c_void_p, c_void_p,
        )  # fmt: skip
        self._c.tokenbus_attend.argtypes = (
            c_int, POINTER(BatchArgs), POINTER(ShapeArgs), c_void_p, c_size_t, c_void_p, c_void_p,
            c_void_p, c_void_p,
        )  # fmt: skip
        self._c.tokenbus_linear.argtypes = (
            c_int, POINTER(LinearArgs), c_void_p, c_float, c_void_p, c_int, c_int, c_void_p,
            c_void_p,
        )  # fmt: skip
        self._c.tokenbus_experts.argtypes = (
            c_int, POINTER(ExpertsArgs), POINTER(PairsArgs), c_void_p, c_int, c_void_p, c_void_p,
        )  # fmt: skip
        self.panel_width: int = self._c.tokenbus_panel_width()
        self._workspace = c_void_p(self._c.tokenbus_workspace_new())
        self._out = torch.empty(0)

    def _output(self, num_rows: int, num_columns: int) -> Tensor:
        """Return memory for a result: logits of fresh memory cost more page faults than sums."""
        size = num_rows * num_columns
        if self._out.numel() < size:
            # Under inference mode it could not be written to outside of it.
            with torch.inference_mode(mode=False):
                self._out = torch.empty(size)
        return self._out[:size].view(num_rows, num_columns)

    def __del__(self) -> None:
        """Free the workspace."""
        if hasattr(self, "_workspace"):
            self._c.tokenbus_workspace_delete(self._workspace)

    def use_huge_pages(self, memory: Tensor) -> None:
        """Ask for huge pages under memory that nobody has written to yet, where there are any."""
        self._c.tokenbus_use_huge_pages(memory.data_ptr(), memory.nbytes)

    def packed_bytes(self, shape: Sequence[int], fmt: WeightFormat, dtype: torch.dtype) -> int:
        """Bytes that a packed weight of [out, in] takes, its outputs filled up to whole panels."""
        size: int = self._c.tokenbus_packed_bytes(DTYPES[dtype], fmt, *shape)
        return size

    def pack(
        self,
        weight: Tensor,
        out: Tensor,
        fmt: WeightFormat,
        dtype: torch.dtype,
        groups: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        """Lay a weight out for products in `dtype`; all tensors are contiguous.

        weight: [out, in] of dtype, int8 for INT8; for INT4 [out, in / 2] uint8, of two inputs the
        first in the low half, with `groups`, its scales and lows, [out, in / 32] bfloat16 each;
        out: [packed_bytes] uint8.
        """
        rows, columns = weight.shape
        scales, lows = (None, None) if groups is None else (part.data_ptr() for part in groups)
        self._c.tokenbus_pack(
            DTYPES[dtype], fmt, weight.data_ptr(), rows,
            2 * columns if fmt == WeightFormat.INT4 else columns, scales, lows, out.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip

    def forward(
        self, model: ModelArgs, batch: BatchArgs, hidden: Tensor, dtype: torch.dtype
    ) -> None:
        """Take hidden, [T, H] float32, through all layers, in place; products are in `dtype`."""
        _check(
            self._c.tokenbus_forward(
                DTYPES[dtype], byref(model), byref(batch), hidden.data_ptr(),
                self._workspace,
            )
        )  # fmt: skip

    def attend(
        self, batch: BatchArgs, shape: ShapeArgs, q: Tensor, k_pages: Tensor, v_pages: Tensor
    ) -> Tensor:
        """q: [T, Hq, D], a token's heads contiguous; keys and values are in their pages.

        Returns: [T, Hq, D].
        """
        out = torch.empty(q.shape, dtype=q.dtype)
        _check(
            self._c.tokenbus_attend(
                DTYPES[q.dtype], byref(batch), byref(shape), q.data_ptr(), q.stride(0),
                k_pages.data_ptr(), v_pages.data_ptr(), self._workspace, out.data_ptr(),
            )
        )  # fmt: skip
        return out

    def linear(
        self, x: Tensor, linear: LinearArgs, norm: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        """Normalise and multiply rows, the products in `dtype`.

        x: [M, in], norm: [in], both float32 -> [M, out] float32, valid until the next call.
        """
        out = self._output(x.shape[0], linear.num_outputs)
        x = x.contiguous()
        _check(
            self._c.tokenbus_linear(
                DTYPES[dtype], byref(linear), norm.data_ptr(), eps,
                x.data_ptr(), x.shape[0], torch.get_num_threads(), self._workspace,
                out.data_ptr(),
            )
        )  # fmt: skip
        return out

    def experts(self, x: Tensor, experts: ExpertsArgs, pairs: SortedPairs) -> Tensor:
        """x: [T, H] -> [T, H] float32: of each row the weighted sum of its experts."""
        x = x.contiguous()
        out = torch.empty(x.shape, dtype=torch.float32)
        args = PairsArgs(
            *pairs.places.shape, pairs.starts.data_ptr(), pairs.rows.data_ptr(),
            pairs.places.data_ptr(), pairs.weights.data_ptr(),
        )  # fmt: skip
        _check(
            self._c.tokenbus_experts(
                DTYPES[x.dtype], byref(experts), byref(args), x.data_ptr(),
                torch.get_num_threads(), self._workspace, out.data_ptr(),
            )
        )  # fmt: skip
        return out


def _check(status: int) -> None:
    if status:
        raise MemoryError("there is no memory for the activations of this batch")
