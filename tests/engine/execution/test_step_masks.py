"""The table of a step's masks: each is sent once, and nobody reads those of earlier steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.execution.step_masks import StepMasks

if TYPE_CHECKING:
    from torch import Tensor

VOCAB = 70
FREE = torch.full((3,), -1, dtype=torch.int32)


def mask_of(number: int) -> Tensor:
    """Return a mask that no other number has."""
    return torch.tensor([number, ~number, 1], dtype=torch.int32)


def read(masks: StepMasks, numbers: list[int]) -> Tensor:
    """Return what the rows of a step read."""
    return masks.of(torch.tensor(numbers))


def test_rows_read_their_own_masks_and_free_ones_allow_everything() -> None:
    """A row that has left or became free is masked by nothing that was sent before."""
    masks = StepMasks(RowState(4, 2, torch.device("cpu")), VOCAB)
    first, second, third = map(mask_of, (5, 9, 12))
    numbers = masks.send([first, None, second, third])
    assert torch.equal(read(masks, numbers), torch.stack([first, FREE, second, third]))
    numbers = masks.send([None, None, first])
    assert torch.equal(read(masks, numbers), torch.stack([FREE, FREE, first]))
    numbers = masks.send([None, None])
    assert torch.equal(read(masks, numbers), torch.stack([FREE, FREE]))
    full = [mask_of(number) for number in range(4)]
    assert torch.equal(read(masks, masks.send(full)), torch.stack(full))


def test_rows_at_one_place_of_a_grammar_send_one_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a step sends grows with the masks that differ, and is nothing without any."""
    rows = RowState(8, 2, torch.device("cpu"))
    masks = StepMasks(rows, VOCAB)
    sent: list[tuple[int, ...]] = []
    copy = rows.copy_into

    def noted(staged: Tensor, values: Any) -> None:
        sent.append(tuple(values.shape))
        copy(staged, values)

    monkeypatch.setattr(rows, "copy_into", noted)
    first, second = mask_of(1), mask_of(2)
    numbers = masks.send([first, None, second, first, first])
    assert torch.equal(read(masks, numbers), torch.stack([first, FREE, second, first, first]))
    assert masks.send([None] * 5) == [0] * 5
    assert sent == [(2, 3)]


@pytest.mark.parametrize("mask", [FREE[:2], FREE.long(), FREE.unsqueeze(0)], ids=str)
def test_mask_of_another_vocabulary_is_refused(mask: Tensor) -> None:
    """It would be read as one, or keep those of all other rows from being sent."""
    masks = StepMasks(RowState(4, 2, torch.device("cpu")), VOCAB)
    masks.require_fit(FREE)
    with pytest.raises(ValueError, match="a mask is"):
        masks.require_fit(mask)
