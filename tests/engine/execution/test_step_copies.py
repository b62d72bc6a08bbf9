"""What a step sends to the device does not grow with the rows that join it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.scheduling.sequence import Sequence
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from torch import Tensor


def sent_by_first_step(engine: Any, num_prompts: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return the sizes of all that a first step of so many prompts sends."""
    rows, sizes = engine._runner.rows, []
    send = rows.to_device

    def noted(*args: Any) -> Tensor:
        sent: Tensor = send(*args)
        sizes.append(sent.numel())
        return sent

    monkeypatch.setattr(rows, "to_device", noted)
    for number in range(num_prompts):
        params = SamplingParams(max_tokens=4, seed=number)
        engine.add(Request(number, tuple(range(number, number + 40)), params))
    assert len(engine.step().admitted) == num_prompts
    return sizes


def test_many_prompts_are_sent_in_as_many_copies_as_one(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy takes a GPU's host as long as ten tokens of a small job: there are few in each step.

    They are: rows with their pages; ids, positions and owners; rows; lengths; borders; last
    tokens; rows and positions of the draws.
    """
    one = sent_by_first_step(tiny.engine(), 1, monkeypatch)
    many = sent_by_first_step(tiny.engine(), 8, monkeypatch)
    assert len(many) == len(one) <= 7
    assert sum(many) > 4 * sum(one)


def test_rows_at_one_place_of_a_grammar_share_a_mask(
    tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each mask is sent once; every row gets its own, and a free one may draw anything."""
    runner = tiny.engine()._runner
    first, second = (torch.tensor([value, ~value], dtype=torch.int32) for value in (5, 9))
    masks = {3: first, 4: second, 7: first, 8: first}
    sizes: list[tuple[int, ...]] = []
    send = runner.rows.to_device

    def noted(*args: Any) -> Tensor:
        sent: Tensor = send(*args)
        sizes.append(tuple(sent.shape))
        return sent

    monkeypatch.setattr(runner.rows, "to_device", noted)
    row_list = [7, 1, 4, 3, 8, 2]
    free = torch.full_like(first, -1)
    expected = torch.stack([masks.get(row, free) for row in row_list])
    assert torch.equal(runner._bitmask([masks.get(row) for row in row_list]), expected)
    assert sizes == [(3, 2), (6,)]
    assert torch.equal(runner._bitmask([masks[4], masks[3]]), torch.stack([second, first]))
    assert runner._bitmask([None] * len(row_list)) is None


@pytest.mark.parametrize("num_pages", [1, 2, 5])
def test_rows_have_the_pages_that_their_sequences_got_since(num_pages: int) -> None:
    """Odd and even numbers of them, of new rows and of known ones, and nobody else's."""
    rows = RowState(4, 8, torch.device("cpu"))
    seqs = []
    for row, num_prompt in ((2, 7), (0, 9)):
        seq = Sequence(Request(row, tuple(range(num_prompt)), SamplingParams()), 0, row, ())
        seq.row, seq.pages = row, [10 * row + page for page in range(1, num_pages + 1)]
        rows.assign(seq)
        seqs.append(seq)
    rows.send(seqs)
    seqs[1].pages += [77, 78, 79]
    rows.send(seqs)
    expected = torch.zeros(5, 8, dtype=torch.int32)
    for seq in seqs:
        expected[seq.row or 0, : len(seq.pages)] = torch.tensor(seq.pages, dtype=torch.int32)
    assert torch.equal(rows.block_table, expected)
    assert rows.num_prompt.tolist() == [9, 0, 7, 0, 0]
