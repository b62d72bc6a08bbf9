"""Counter-based draws: one uniform per token, keyed by (seed, choice, position).

A token is drawn by inverting the cumulative distribution over the vocabulary in id order, with one
uniform. The alternative, an exponential or Gumbel variate per vocabulary entry, needs V hashes and
logarithms per token (49k on the demo model, milliseconds on a CPU) and has no defined border; with
one uniform two devices can only disagree when the uniform lies within rounding of a border of the
cumulative distribution, and that distance can be measured.

The uniform is SplitMix64 (Steele, Lea, Flood 2014) evaluated at a counter, with key and odd
increment taken from BLAKE2b of (seed, choice): no state to carry, so batch, chunking, preemption
and worker cannot change it.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
# The 53 high bits fill the mantissa of a double.
_UNIFORM_SHIFT = 11
_UNIFORM_SCALE = 2.0**-53
# Entries per tile of the two-level inversion; 256 keeps both levels short for V up to 256k.
_TILE = 256


def _signed(value: int) -> int:
    """Reinterpret 64 bits as int64, the widest integer torch multiplies."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def stream_key(seed: int, choice: int) -> tuple[int, int]:
    """Return (key, increment) of a choice's stream as int64 bit patterns; the increment is odd."""
    material = f"{seed}:{choice}".encode()
    digest = hashlib.blake2b(material, digest_size=16, person=b"tokenbus.draw").digest()
    key = int.from_bytes(digest[:8], "little")
    increment = int.from_bytes(digest[8:], "little") | 1
    return _signed(key), _signed(increment)


def _logical_shift(value: Tensor, bits: int) -> Tensor:
    """Shift int64 right as if it were unsigned."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


def uniforms(keys: Tensor, increments: Tensor, positions: Tensor) -> Tensor:
    """Return the uniform of each row at its position.

    Args:
        keys, increments: [M] int64 from `stream_key`.
        positions: [M] int64, index of the token in the choice's output, from 0.
    Returns: [M] float64 in [0, 1).
    """
    z = keys + (positions + 1) * increments
    z = (z ^ _logical_shift(z, 30)) * _signed(_MIX_1)
    z = (z ^ _logical_shift(z, 27)) * _signed(_MIX_2)
    z = z ^ _logical_shift(z, 31)
    return _logical_shift(z, _UNIFORM_SHIFT).double() * _UNIFORM_SCALE


def uniform(seed: int, choice: int, position: int) -> float:
    """Return one uniform without tensors: the twin of `uniforms`."""
    key, increment = stream_key(seed, choice)
    z = (key + (position + 1) * increment) & _MASK64
    z = ((z ^ (z >> 30)) * _MIX_1) & _MASK64
    z = ((z ^ (z >> 27)) * _MIX_2) & _MASK64
    z ^= z >> 31
    return (z >> _UNIFORM_SHIFT) * _UNIFORM_SCALE


def _invert(weights: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Find the first entry whose running sum exceeds the target.

    An entry of weight 0 is never returned as long as the row has a positive one: rounding can lift
    a target to the row's total, and the result is then the last positive entry.

    Args:
        weights: [M, K] non-negative; targets: [M] float64.
    Returns: ([M] int64 index, [M] float64 sum of the weights before it).
    """
    running = weights.double().cumsum(-1)
    after = (running <= targets.unsqueeze(-1)).sum(-1)
    order = torch.arange(weights.shape[-1], device=weights.device)
    last_positive = torch.where(weights > 0, order, 0).amax(-1)
    index = torch.minimum(after, last_positive)
    chosen = index.unsqueeze(-1)
    before = (running.gather(-1, chosen) - weights.gather(-1, chosen)).squeeze(-1)
    return index, before


def draw(weights: Tensor, uniform_values: Tensor) -> Tensor:
    """Draw one entry per row, in proportion to its weight, in vocabulary order.

    Two levels: the tile of 256 entries by tile sums, then the entry inside the tile, so that the
    row is read once and no running sum over the vocabulary is written.

    Args:
        weights: [M, V] float32, non-negative, not necessarily normalised.
        uniform_values: [M] float64 in [0, 1).
    Returns: [M] int64.
    """
    vocab_size = weights.shape[-1]
    num_full = vocab_size // _TILE
    num_rows = weights.shape[0]
    tile_sums = weights[:, : num_full * _TILE].view(num_rows, num_full, _TILE).sum(-1)
    if vocab_size % _TILE:
        tail = weights[:, num_full * _TILE :].sum(-1, keepdim=True)
        tile_sums = torch.cat((tile_sums, tail), dim=-1)
    targets = uniform_values * tile_sums.double().sum(-1)
    tile, before = _invert(tile_sums, targets)
    columns = tile.unsqueeze(-1) * _TILE + torch.arange(_TILE, device=weights.device)
    inside = weights.gather(-1, columns.clamp(max=vocab_size - 1))
    inside = torch.where(columns < vocab_size, inside, 0.0)
    offset, _ = _invert(inside, targets - before)
    return tile * _TILE + offset
