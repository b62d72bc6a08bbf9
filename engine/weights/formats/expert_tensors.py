"""Tensors of experts, brought to one form: each expert's matrices under names of their own.

Checkpoints have a matrix per expert, as published, or all of them stacked, as `transformers` holds
them; stacked ones are views here, so nothing is copied on the way.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from tokenbus.engine.weights.slots import refuse_shape

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from tokenbus.engine.models.decoder_config import DecoderConfig, MixtureShape

_LAYER = re.compile(r"(.*\blayers\.\d+\.)(?:mlp|block_sparse_moe)\.(.+)")
_ROUTERS = ("gate.weight", "router.weight", "router.layer.weight")
# All gates and what they gate, [E, 2 I, H]; what lies behind them, [E, H, I].
_GATE_UPS = ("experts.gate_up_proj", "input_linear.weight")
_DOWNS = ("experts.down_proj", "output_linear.weight")


def expert_tensors(
    named: Iterable[tuple[str, Tensor]], config: DecoderConfig
) -> Iterator[tuple[str, Tensor]]:
    """Pass a checkpoint's tensors on, those of mixtures under the names of the config.

    Raises: ModelBroken for a stack of another shape than the config's.
    """
    for name, tensor in named:
        found = None if config.mixture is None else _LAYER.fullmatch(name)
        if config.mixture is None or found is None:
            yield name, tensor
            continue
        layer, part = found.groups()
        names = config.mixture.names
        if part in _ROUTERS:
            yield f"{layer}{names.router}.weight", tensor
        elif part in _GATE_UPS:
            inner = config.mixture.intermediate_size
            refuse_shape(
                name, tensor, ((config.mixture.num_experts, 2 * inner, config.hidden_size),)
            )
            yield from _taken_apart(layer, config.mixture, tensor, names.gate, names.up)
        elif part in _DOWNS:
            inner = config.mixture.intermediate_size
            refuse_shape(name, tensor, ((config.mixture.num_experts, config.hidden_size, inner),))
            yield from _taken_apart(layer, config.mixture, tensor, names.down)
        else:
            yield name, tensor


def _taken_apart(
    layer: str, mixture: MixtureShape, stack: Tensor, *linears: str
) -> Iterator[tuple[str, Tensor]]:
    """Return each expert's part of a stack, of each part one of `linears` after the other."""
    for number, matrix in enumerate(stack):
        for linear, part in zip(linears, matrix.chunk(len(linears)), strict=True):
            yield f"{layer}{mixture.names.experts}.{number}.{linear}.weight", part
