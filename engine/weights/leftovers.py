"""Leftovers: tensors of a checkpoint that no part of the model takes, and which of them matter."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

from tokenbus.engine.errors import ModelUnsupported
from tokenbus.engine.weights.slots import FLOATS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

_log = logging.getLogger(__name__)

# Tables that are computed, and were saved all the same.
_COMPUTED = re.compile(r"(^|\.)rotary_emb\.(inv_freq|cos_cached|sin_cached)$")
# Scales and zero points of a KV cache in 8 bits. Pages have the model's dtype, or scales of their
# own.
_KV_SCALE = re.compile(
    r"(^|\.)(self_attn|attn)\.((q|k|v|qkv)_proj\.)?(k|v|kv|q|prob|output)_(scale|zero_point)$"
)
# Names that formats of quantised weights use, besides `weight` and `bias`.
_QUANTISED = re.compile(
    r"(scale|scales|scale_inv|zero|zeros|zero_point|g_idx|perm|qweight|weight_packed|weight_shape"
    r"|absmax|quant_map|quant_state\S*|SCB|lut|codebooks?|codes)$"
)
_INSIDE = ("layers.", "embed_tokens.", "norm.", "lm_head.")


# What transformers' own code loads into a model: numbers by themselves, as safetensors and torch
# call them. Masks and tables of positions come as integers.
_PLAIN = frozenset(("F64", "F32", "F16", "BF16", *map(str, FLOATS)))
_TABLE = re.compile(
    r"(^|\.)(attn\.bias|attention\.bias|masked_bias|\w*_(ids|index|indices)|inv_freq|\w*mask)$"
)


def refuse_stored(dtypes: Mapping[str, str]) -> None:
    """Refuse tensors that transformers' code would cast without what they are scaled by.

    dtypes: what each tensor of a checkpoint is stored as, by name.
    Raises: ModelUnsupported with the name of the first.
    """
    for name, dtype in dtypes.items():
        if dtype not in _PLAIN and not _TABLE.search(name):
            raise ModelUnsupported(
                f"{name} is stored as {dtype.removeprefix('torch.')}, and this model runs in"
                " transformers' code, for which only plain numbers are read"
            )


class Leftovers:
    """Decides on each tensor without a slot: nothing that would change an answer is dropped.

    Inside the decoder everything matters but tables that are computed and biases of zeros. Outside
    of it, other towers do not, nor do heads for other uses; those are told of in the log.
    """

    def __init__(self, linears: frozenset[str], num_layers: int, *, has_towers: bool) -> None:
        """Know the model's linears by name, and whether its config has other towers than text."""
        self._linears, self._num_layers, self._has_towers = linears, num_layers, has_towers
        self._outside: list[str] = []

    def check(self, name: str, inner: str, tensor: Tensor) -> None:
        """Accept a tensor that does not matter; `inner` is its name without the text's prefix.

        Raises: ModelUnsupported with the tensor's name and what it would have been needed for.
        """
        if _COMPUTED.search(inner) or _KV_SCALE.search(inner):
            return
        if not inner.startswith(_INSIDE):
            self._note(name, tensor)
            return
        linear, _, last = inner.rpartition(".")
        if last == "bias" and linear in self._linears:
            if tensor.dtype in FLOATS and not bool(tensor.any()):
                return
            raise ModelUnsupported(f"{name} is not zero, and the config gives its linear no bias")
        layer = inner.split(".")[1]
        if inner.startswith("layers.") and layer.isdecimal() and int(layer) >= self._num_layers:
            raise ModelUnsupported(
                f"{name} belongs to layer {layer}, the config ends after {self._num_layers} layers"
            )
        if _QUANTISED.search(last):
            raise ModelUnsupported(
                f"{name} belongs to quantised weights, and config.json names no quantisation that"
                " has it"
            )
        raise ModelUnsupported(f"{name} is in the checkpoint, and no part of the model takes it")

    def tell(self) -> None:
        """Say in the log what was left out."""
        if self._outside:
            _log.warning(
                "weights.left_out: %d tensors are no part of the model, first of them %s",
                len(self._outside),
                min(self._outside),
            )

    def _note(self, name: str, tensor: Tensor) -> None:
        if self._has_towers:
            return
        if tensor.dtype not in FLOATS or _QUANTISED.search(name.rpartition(".")[2]):
            dtype = str(tensor.dtype).removeprefix("torch.")
            raise ModelUnsupported(f"{name}, {dtype}, is in the checkpoint, and nothing takes it")
        self._outside.append(name)
