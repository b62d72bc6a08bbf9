"""Rotary position embeddings: tables made once, rows gathered once per pass."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tokenbus.engine.errors import ModelBroken

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext


class RopeTable:
    """cos and sin of every position, [max_len, rot_dim] float32, both halves of rot_dim equal.

    Pairs are (i, i + rot_dim / 2); dimensions from rot_dim on are left as they are.
    """

    def __init__(self, inv_freq: Tensor, scaling: float, max_len: int) -> None:
        angles = torch.arange(max_len, dtype=torch.float32, device=inv_freq.device)
        angles = torch.outer(angles, inv_freq.float())
        angles = torch.cat((angles, angles), -1)
        self.cos = angles.cos().mul_(scaling)
        self.sin = angles.sin_().mul_(scaling)
        self.rot_dim = angles.shape[1]

    def rows(self, ctx: ForwardContext) -> tuple[Tensor, Tensor]:
        """Return cos and signed sin of this pass's tokens, [T, 1, rot_dim] float32.

        The sign makes a rotation x * cos + swap(x) * sin, where swap exchanges the halves.
        """
        key = ("rope", id(self))
        rows: tuple[Tensor, Tensor] | None = ctx.memo.get(key)
        if rows is None:
            cos = self.cos.index_select(0, ctx.positions)
            sin = self.sin.index_select(0, ctx.positions)
            sin[:, : self.rot_dim // 2].neg_()
            rows = cos[:, None], sin[:, None]
            ctx.memo[key] = rows
        return rows


def rope_table(
    config: Any,
    layer_type: str | None,
    max_len: int,
    device: torch.device,
    *,
    is_partial: bool = False,
) -> RopeTable:
    """Build the table that a transformers config asks for, of one layer type if they differ.

    `is_partial`: the family rotates a share of each head in the plain kind, too, if asked to.
    Frequencies that depend on the length of the text (longrope, dynamic) are those of `max_len`.
    Raises: ModelBroken with the settings that make no table.
    """
    told = _told(config, layer_type)
    rope_type = told.get("rope_type", "default")
    known = ", ".join(sorted({"default", *ROPE_INIT_FUNCTIONS}))
    if rope_type not in known.split(", "):
        raise ModelBroken(
            "config.json gives rotary settings that make no table: the type"
            f" {rope_type!r} is not known, only {known} are"
        )
    try:
        inv_freq, scaling = _frequencies(config, layer_type, max_len, device, is_partial)
        _check(inv_freq, scaling, _head_dim(config))
    except (LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        # A list of factors of the wrong length, a kind that is not known, a base that is no number.
        raise ModelBroken(
            f"config.json gives rotary settings that make no table: {told}"
            f" ({type(error).__name__}: {error})"
        ) from error
    return RopeTable(inv_freq.to(device), scaling, max_len)


def _told(config: Any, layer_type: str | None) -> dict[str, Any]:
    """Return the settings of a layer type as they are told.

    Raises: ModelBroken if there are none.
    """
    try:
        told = _params(config, layer_type)
    except (LookupError, TypeError, AttributeError) as error:
        raise ModelBroken(f"config.json gives {layer_type} no rotary settings") from error
    if not isinstance(told, dict):
        raise ModelBroken(f"config.json gives rotary settings that are no object: {told!r:.60}")
    return told


def _check(inv_freq: Tensor, scaling: float, head_dim: int) -> None:
    """Raise ValueError for frequencies that rotate more than a head, or to nowhere."""
    if 2 * len(inv_freq) > head_dim:
        raise ValueError(f"{len(inv_freq)} pairs are more than a head of {head_dim} has")
    if not bool(inv_freq.isfinite().all()) or not math.isfinite(scaling):
        raise ValueError("a frequency is no finite number")


def _head_dim(config: Any) -> int:
    head_dim = getattr(config, "head_dim", None)
    return int(head_dim or config.hidden_size // config.num_attention_heads)


def _frequencies(
    config: Any, layer_type: str | None, max_len: int, device: torch.device, is_partial: bool
) -> tuple[Tensor, float]:
    """Return the frequencies of a table, [rot_dim / 2] float32, and what scales it."""
    params = _params(config, layer_type)
    rope_type = params.get("rope_type", "default")
    if rope_type == "default":
        share = params.get("partial_rotary_factor", 1.0) if is_partial else 1.0
        rot_dim = int(_head_dim(config) * share)
        steps = torch.arange(0, rot_dim, 2, dtype=torch.float32, device=device)
        return 1.0 / (params["rope_theta"] ** (steps / rot_dim)), 1.0
    init = cast("Any", ROPE_INIT_FUNCTIONS[rope_type])
    inv_freq, scaling = init(config, device, seq_len=max_len, layer_type=layer_type)
    for name in ("short_factor", "long_factor"):
        num_factors = len(params.get(name) or inv_freq)
        if num_factors != len(inv_freq):
            raise ValueError(f"{name} has {num_factors} factors for {len(inv_freq)} frequencies")
    return inv_freq, scaling


def _params(config: Any, layer_type: str | None) -> dict[str, Any]:
    params: dict[str, Any] = config.rope_parameters
    return params[layer_type] if layer_type is not None else params
