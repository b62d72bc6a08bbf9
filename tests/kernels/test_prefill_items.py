"""The list of what programs attend in a pass over prompts, against one made tile by tile."""

import random

import pytest
import torch
from models.paged_batch import DEVICE

from tokenbus.kernels.attention.prefill_items import prefill_items
from tokenbus.kernels.launch import KernelInputError


def described(
    borders: list[int], lens: list[int], num_tokens: int, tile_tokens: int
) -> list[tuple[int, ...]]:
    """Return the tiles with tokens: sequence, tokens, first position, keys, context."""
    num_sequences = len(lens)
    found = []
    for tile in range(num_tokens // tile_tokens + num_sequences + 1):
        n = max(n for n, border in enumerate(borders) if border // tile_tokens + n <= tile)
        last, context = (borders[n + 1], lens[n]) if n < num_sequences else (num_tokens, 0)
        token = borders[n] + (tile - borders[n] // tile_tokens - n) * tile_tokens
        earliest = context - last + token
        if token < last:
            keys = min(earliest + tile_tokens, context) if n < num_sequences else 0
            found.append((n, token, min(token + tile_tokens, last), earliest, keys, context))
    return found


@pytest.mark.parametrize(
    ("num_sequences", "tile_tokens"),
    [(1, 64), (3, 18), (70, 64), pytest.param(90, 18, marks=pytest.mark.slow)],
)
def test_items_are_all_tiles_with_tokens_longest_first(
    num_sequences: int, tile_tokens: int
) -> None:
    """Every token is in one item, of its sequence or of the padding, which has no keys."""
    source = random.Random(num_sequences)
    query_lens = [
        source.choice([0, 1, tile_tokens, tile_tokens + 1]) for _ in range(num_sequences - 1)
    ] + [70]
    lens = [length + source.choice([0, 0, 77]) for length in query_lens]
    borders = torch.tensor([0, *query_lens]).cumsum(0).int()
    num_tokens = int(borders[-1]) + 50
    items = prefill_items(
        borders.to(DEVICE),
        torch.tensor(lens, dtype=torch.int32, device=DEVICE),
        num_tokens,
        tile_tokens,
    ).tolist()
    expected = described(borders.tolist(), lens, num_tokens, tile_tokens)
    assert items[0][0] == len(expected)
    found = [tuple(item[:6]) for item in items[1 : 1 + len(expected)]]
    assert found == sorted(expected, key=lambda item: -item[4])
    covered = sorted(token for _, first, end, *_ in found for token in range(first, end))
    assert covered == list(range(num_tokens))


def test_borders_of_other_sequences_are_refused() -> None:
    """There is a border before each sequence and one behind the last."""
    lens = torch.ones(3, dtype=torch.int32, device=DEVICE)
    with pytest.raises(KernelInputError, match="3 borders"):
        prefill_items(lens, lens, 3, 64)
