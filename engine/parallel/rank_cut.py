"""A rank's part of a checkpoint: which slice of each tensor it reads.

Tensors come mapped from disk, so that a slice of one reads its own bytes alone. A tensor of any
format is cut along the axis in which its shape in the whole model differs from that of the rank's
part. The linear's sections tell where along it the slices lie: a fused matrix of queries, keys and
values is cut in each of the three.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch

from tokenbus.engine.errors import ModelBroken, ModelUnsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    Shapes = tuple[tuple[int, ...], ...]

# Tensors that speak of the matrix, beside those that hold its numbers.
_SHAPE = "weight_shape"
_GROUPS = ("g_idx", "weight_g_idx")


class LinearPart(NamedTuple):
    """A linear of the checkpoint: outputs of each section of its matrix, and its inputs."""

    sections: tuple[int, ...]
    num_inputs: int

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return sum(self.sections), self.num_inputs


class Piece(NamedTuple):
    """Numbers [start, end) along an axis of the whole."""

    start: int
    end: int


class RankCut:
    """Cuts tensors of the whole model for one rank."""

    def __init__(
        self, rank: int, size: int, shapes: Mapping[str, Shapes], linears: Mapping[str, LinearPart]
    ) -> None:
        """`shapes` of which each tensor has one, and `linears`, are those of the whole model."""
        self.rank, self.size = rank, size
        self.shapes, self._linears = shapes, linears

    def piece(self, whole: int, own: int) -> Piece:
        """Return which part of `whole` numbers the rank has; several may have the same one.

        `whole` is a multiple of `own`: as many pieces are shared out over the ranks in order.
        """
        first = self.rank * (whole // own) // self.size * own
        return Piece(first, first + own)

    def cut(
        self,
        part: str,
        name: str,
        tensor: Tensor,
        own: LinearPart,
        shapes: Shapes,
    ) -> Tensor:
        """Return the rank's slice of a tensor of a linear, `name` in the checkpoint.

        It has one of the whole model's shapes; `own` and `shapes` are the rank's linear and its
        shapes in the same order, `part` their name in the model.
        Raises: ModelUnsupported for a tensor that cannot be cut where the rank's part begins.
        """
        linear, _, last = part.rpartition(".")
        whole = self._linears[linear]
        whole_shapes = self.shapes[part]
        if last == _SHAPE:
            return _own_shape(name, tensor, whole, own)
        cuts_inputs = own.num_inputs < whole.num_inputs
        if last == "bias" and cuts_inputs:
            # Ranks sum what they have: one of them has the bias.
            return tensor if self.rank == 0 else torch.zeros_like(tensor)
        form = whole_shapes.index(tuple(tensor.shape))
        pairs = zip(whole_shapes[form], shapes[form], strict=True)
        axes = [axis for axis, (there, here) in enumerate(pairs) if there != here]
        if not axes:
            return tensor
        (axis,) = axes
        pieces = [self.piece(*whole[1:], *own[1:])] if cuts_inputs else self._sections(whole, own)
        total = whole.num_inputs if cuts_inputs else sum(whole.sections)
        cut = _slices(name, tensor, axis, pieces, total)
        return _own_groups(name, tensor, cut) if last in _GROUPS else cut

    def _sections(self, whole: LinearPart, own: LinearPart) -> list[Piece]:
        pieces: list[Piece] = []
        start = 0
        for there, here in zip(whole.sections, own.sections, strict=True):
            first, end = self.piece(there, here)
            pieces.append(Piece(start + first, start + end))
            start += there
        return pieces


def _slices(name: str, tensor: Tensor, axis: int, pieces: list[Piece], total: int) -> Tensor:
    """Return pieces of `total` numbers, of which an entry along the axis may stand for several."""
    count = tensor.shape[axis]
    borders = [border * count for piece in pieces for border in piece]
    if any(border % total for border in borders):
        raise ModelUnsupported(
            f"{name} cannot be cut for ranks: its {count} groups of {total} do not end where"
            " their parts do"
        )
    starts, ends = borders[::2], borders[1::2]
    parts = [
        tensor.narrow(axis, start // total, (end - start) // total)
        for start, end in zip(starts, ends, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts, axis)


def _own_shape(name: str, told: Tensor, whole: LinearPart, own: LinearPart) -> Tensor:
    """Return the rank's own shape in place of the whole matrix's."""
    if tuple(told.tolist()) != whole.shape:
        raise ModelBroken(f"{name} says {told.tolist()}, the config asks for {list(whole.shape)}")
    return told.new_tensor(own.shape)


def _own_groups(name: str, groups: Tensor, cut: Tensor) -> Tensor:
    """groups: [in], the group of each input; cut: a rank's part of it -> counted from its first."""
    if bool((groups[1:] < groups[:-1]).any()):
        raise ModelUnsupported(f"{name} orders the inputs by groups, which ranks cannot share")
    return cut - cut[0]
