"""The device-side work list: every token once, in an order that balances programs."""

import random
from typing import Any

import pytest
import torch
from models.paged_batch import DEVICE

from tokenbus.kernels.attention.prefix_groups import MAX_RUN_PARTS, PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork, SplitPolicy
from tokenbus.kernels.launch import KernelInputError

PAGE = 16
SMALL = SplitPolicy(2 * PAGE, 2 * PAGE, 8, 8)


def build(
    lens: list[int],
    groups: list[PrefixGroup] | None = None,
    window: int | None = None,
    max_rows: int | None = None,
    policy: SplitPolicy = SMALL,
) -> DecodeWork:
    """Build a list of small splits, so that every row has several."""
    shape: dict[str, Any] = {"page_size": PAGE, "num_heads": 4, "num_kv_heads": 2}
    max_rows = max_rows or len(lens)
    tables = None
    if groups is not None:
        tables = PrefixGroups(
            max_rows=max_rows,
            device=DEVICE,
            tile_rows=16,
            num_processors=4,
            min_saved_tokens=0,
            **shape,
        )
        tables.assign(groups)
    work = DecodeWork(
        max_rows=max_rows, max_pages=128, head_dim=64, device=DEVICE, sliding_window=window,
        groups=tables, policy=policy, **shape,
    )  # fmt: skip
    work.items.fill_(-1)
    work.build(torch.tensor(lens, dtype=torch.int32, device=DEVICE))
    return work


def listed(work: DecodeWork) -> list[list[int]]:
    """Return the items that the attention kernel will see."""
    items: list[list[int]] = work.items[: int(work.num_items)].tolist()
    return items


@pytest.mark.parametrize("seed", range(6))
def test_every_token_is_listed_once(seed: int) -> None:
    """The parts of a row tile its tokens without gap or overlap, and are as many as announced."""
    rng = random.Random(seed)
    lens = [rng.choice([0, 1, PAGE, rng.randint(1, 40 * PAGE)]) for _ in range(rng.randint(1, 40))]
    work = build(lens)
    for row, length in enumerate(lens):
        own = sorted((item[3], item[1], item[2]) for item in listed(work) if item[0] == row)
        assert [part for part, _, _ in own] == list(range(len(own)))
        assert [begin for _, begin, _ in own] == [0, *(end for _, _, end in own[:-1])]
        assert own[-1][2] == length
        assert int(work.parts[row]) == len(own) <= 8
        assert {item[4] for item in listed(work) if item[0] == row} == {len(own)}


def test_list_is_sorted_longest_first() -> None:
    """Whole splits come first and the tails after them by length, so that no program ends late."""
    work = build([5 * PAGE, 3, PAGE + 1, 7 * PAGE + 2, 0])
    pages = [-(-(item[2] - item[1]) // PAGE) for item in listed(work)]
    assert pages == sorted(pages, reverse=True)


def test_splits_do_not_depend_on_the_other_rows() -> None:
    """The borders of a row are those it has alone."""
    lens = [100, 7 * PAGE, 333, 16]
    together = build(lens)
    for row, length in enumerate(lens):
        alone = sorted(item[1:5] for item in listed(build([length])))
        assert alone == sorted(item[1:5] for item in listed(together) if item[0] == row)


@pytest.mark.parametrize("window", [1, PAGE, 3 * PAGE + 5])
def test_pages_before_the_window_are_not_listed(window: int) -> None:
    """The first listed page is the one that holds the oldest visible token."""
    length = 9 * PAGE + 3
    items = listed(build([length], window=window))
    assert min(item[1] for item in items) == (length - window) // PAGE * PAGE
    assert sum(item[2] - item[1] for item in items) == length - (length - window) // PAGE * PAGE


def test_runs_and_own_parts_fill_the_list_together() -> None:
    """Shared runs take part numbers before a row's own parts, and the list has no hole."""
    rows = tuple(range(24))
    groups = [PrefixGroup(rows, 0, 12), PrefixGroup(rows[:10], 12, 20)]
    lens = [20 * PAGE + 5 * (row + 1) for row in rows]
    work = build(lens, groups)
    items = listed(work)
    assert all(item[0] >= 0 for item in items)
    assert work.groups is not None
    members = work.groups.members.tolist()
    seen: dict[int, list[tuple[int, int, int]]] = {row: [] for row in rows}
    for row, begin, end, part, _, count, first, _ in items:
        for reader in members[first : first + count] if count else [row]:
            seen[reader].append((part, begin, end))
    for row, length in enumerate(lens):
        parts = sorted(seen[row])
        assert [part for part, _, _ in parts] == list(range(int(work.parts[row])))
        assert sum(end - begin for _, begin, end in parts) == length
        assert len({begin for _, begin, _ in parts}) == len(parts)


def test_long_run_is_cut_into_few_parts() -> None:
    """However long a run is, its partial results fit the buffers."""
    groups = PrefixGroups(
        max_rows=4, page_size=PAGE, num_heads=4, num_kv_heads=2, device=DEVICE, min_saved_tokens=0
    )
    groups.assign([PrefixGroup((0, 1), 0, 5000)])
    assert int(groups.shared_parts[0]) == MAX_RUN_PARTS
    assert int(groups.shared_pages[1]) == 5000
    assert int(groups.num_items) == MAX_RUN_PARTS


def test_groups_that_save_too_little_stay_apart() -> None:
    """Below the break-even nothing is grouped; at it everything is."""
    group = PrefixGroup((0, 1, 2), 0, 4)
    saved = 2 * 4 * PAGE * 2
    for least, expected in ((saved + 1, 0), (saved, 4)):
        tables = PrefixGroups(
            max_rows=3, page_size=PAGE, num_heads=4, num_kv_heads=2, device=DEVICE,
            min_saved_tokens=least,
        )  # fmt: skip
        tables.assign([group])
        assert tables.shared_pages.tolist() == [expected] * 3


def test_cleared_groups_leave_no_run() -> None:
    """Dissolving the groups gives every row its pages back."""
    groups = [PrefixGroup((0, 1, 2), 0, 2)]
    work = build([50, 60, 70], groups)
    assert work.groups is not None
    work.groups.clear()
    work.build(torch.tensor([50, 60, 70], dtype=torch.int32, device=DEVICE))
    assert sum(item[2] - item[1] for item in listed(work)) == 180


def test_few_rows_are_cut_finer_than_many() -> None:
    """By default a lone sequence spreads over the chip and a crowd is left whole."""
    work = DecodeWork(
        max_rows=130, max_pages=128, page_size=PAGE, num_heads=4, num_kv_heads=2, head_dim=64,
        device=DEVICE,
    )  # fmt: skip
    for rows, expected in ((1, 8), (8, 4), (16, 2), (17, 2), (80, 1)):
        work.build(torch.full((rows,), 1024, dtype=torch.int32, device=DEVICE))
        assert work.parts[:rows].tolist() == [expected] * rows


def test_more_rows_than_the_buffers_hold_are_refused() -> None:
    """The work list says how many rows it was made for."""
    work = build([3, 4])
    with pytest.raises(KernelInputError, match="3 rows, buffers hold 2"):
        work.build(torch.ones(3, dtype=torch.int32, device=DEVICE))


@pytest.mark.parametrize(
    ("pages", "expected"), [(1, 1), (2, 1), (8, 4), (9, 3), (16, 4), (17, 3), (64, 4), (65, 5)]
)
def test_parts_grow_to_the_target_then_with_the_length(pages: int, expected: int) -> None:
    """Short rows are cut finely into at most four, long ones into wide parts."""
    work = build([pages * PAGE], policy=SplitPolicy(2 * PAGE, 16 * PAGE, 4, 32))
    assert int(work.parts[0]) == expected


def test_rows_that_share_nothing_have_a_kernel_without_runs() -> None:
    """A list knows runs as long as there are any, or where the start compiles for both."""
    work = build([4 * PAGE] * 3, groups=[])
    assert work.active_groups is None
    assert work.groups is not None
    work.groups.assign([PrefixGroup((0, 1), 0, 2)])
    assert work.active_groups is work.groups
    work.groups.clear()
    assert work.active_groups is None
    work.assumes_runs = True
    assert work.active_groups is work.groups
    assert build([PAGE]).active_groups is None
