"""What a decode step reads, gathered in one launch, and what it leaves for the next one."""

from __future__ import annotations

import torch
from models.paged_batch import DEVICE

from tokenbus.kernels.decode_inputs import decode_inputs, keep_tokens


def test_a_step_reads_what_its_rows_hold() -> None:
    """Tokens, slots, lengths and pages of each row; padding has length 0 and writes to scratch."""
    tables = torch.arange(6 * 300, dtype=torch.int32, device=DEVICE).view(6, 300)
    tables[5] = 0
    last_tokens = torch.arange(6, device=DEVICE) * 10
    num_prompts = torch.tensor([2, 0, 0, 40, 0, 0], device=DEVICE)
    # Three times 128 pages, a page's last token, its first, and padding.
    rows = torch.tensor([3, 0, 2, 5], device=DEVICE)
    positions = torch.tensor([16 * 290 + 5, 15, 16, -1], device=DEVICE)
    block_table = torch.full((4, 300), -7, dtype=torch.int32, device=DEVICE)
    got = decode_inputs(
        rows, positions, tables=tables, last_tokens=last_tokens, num_prompts=num_prompts,
        page_size=16, block_table=block_table,
    )  # fmt: skip
    assert got.token_ids.tolist() == [30, 0, 20, 50]
    assert got.positions.tolist() == [4645, 15, 16, 0]
    assert got.context_lens.tolist() == [4646, 16, 17, 0]
    assert got.drawn_at.tolist() == [4606, 14, 17, 0]
    assert got.slots.tolist() == [(900 + 290) * 16 + 5, 15, (600 + 1) * 16, 0]
    assert torch.equal(got.block_table[0, :291], tables[3, :291])
    assert got.block_table[1, :2].tolist() == [0, -7]
    assert got.block_table[2, :3].tolist() == [600, 601, -7]


def test_drawn_tokens_are_kept_for_their_rows() -> None:
    """Each row's next input is what it drew, 0 where it drew nothing; other rows keep theirs."""
    last_tokens = torch.arange(400, device=DEVICE)
    rows = torch.arange(399, 99, -1, device=DEVICE)
    drawn = torch.arange(1000, 1300, device=DEVICE)
    drawn[::7] = -1
    keep_tokens(last_tokens, rows, drawn)
    assert torch.equal(last_tokens[:100].cpu(), torch.arange(100))
    assert torch.equal(last_tokens[rows], drawn.clamp(min=0))
