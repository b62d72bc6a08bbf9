"""Paged decode attention against its fp32 twin."""

from itertools import accumulate
from typing import Any

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF, PagedBatch, assert_close, make_batch

from tokenbus.kernels import reference
from tokenbus.kernels.attention.paged_decode import QueryRows, choose_tuning, paged_decode
from tokenbus.kernels.attention.prefix_groups import PrefixGroup, PrefixGroups
from tokenbus.kernels.attention.work_list import DecodeWork, SplitPolicy
from tokenbus.kernels.launch import KernelInputError, num_processors

pytestmark = pytest.mark.each_value


def make_work(batch: PagedBatch, max_rows: int | None = None, **options: object) -> DecodeWork:
    """Size the buffers for `batch`."""
    num_rows, num_heads, head_dim = batch.q.shape
    return DecodeWork(
        max_rows=max_rows or num_rows,
        max_pages=batch.block_table.shape[1],
        page_size=batch.k_pages.shape[2],
        num_heads=num_heads,
        num_kv_heads=batch.k_pages.shape[1],
        head_dim=head_dim,
        device=DEVICE,
        **options,  # type: ignore[arg-type]  # keyword names are checked by the call itself
    )


def run(batch: PagedBatch, work: DecodeWork, softcap: float | None = None) -> torch.Tensor:
    """Build the list and attend into a NaN-filled output."""
    work.build(batch.context_lens)
    out = torch.full_like(batch.q, float("nan"))
    scale = batch.q.shape[-1] ** -0.5
    paged_decode(
        batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens, work,
        scale=scale, softcap=softcap, out=out,
    )  # fmt: skip
    return out


def expect(
    batch: PagedBatch, window: int | None = None, softcap: float | None = None
) -> torch.Tensor:
    """Compute the twin's result."""
    return reference.paged_decode(
        batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens,
        scale=batch.q.shape[-1] ** -0.5, sliding_window=window, softcap=softcap,
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "page_size"),
    [(4, 2, 64, 16), (3, 1, 64, 64), (2, 2, 128, 64), (8, 1, 64, 32), (2, 1, 80, 128)],
    ids=lambda value: str(value),
)
def test_decode_equals_twin_at_page_borders(
    num_heads: int, num_kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype
) -> None:
    """Lengths of one, of a page and around it, split or not, agree with the twin."""
    lens = [1, page_size - 1, page_size, page_size + 1, 0, 5 * page_size + 3]
    batch = make_batch(
        lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        page_size=page_size, dtype=dtype,
    )  # fmt: skip
    work = make_work(batch, policy=SplitPolicy(2 * page_size, 2 * page_size))
    assert_close(run(batch, work), expect(batch), dtype)


def test_decode_leaves_its_counters_ready_for_the_next_launch() -> None:
    """Two launches of one work list give the same bits, and all counters end at zero."""
    batch = make_batch(
        [300, 40, 7, 200, 129], num_heads=4, num_kv_heads=2, head_dim=64, page_size=16,
        dtype=torch.float32,
    )  # fmt: skip
    work = make_work(batch, max_rows=9, policy=SplitPolicy(32, 32))
    first = run(batch, work)
    assert torch.equal(run(batch, work), first)
    assert not work.arrivals.any()


def test_decode_serves_more_parts_than_it_has_programs() -> None:
    """Programs that come back for a second and third item read the tokens of that item."""
    # The interpreter has four processors, a GPU more than a hundred.
    rows = 70 if DEVICE.type == "cuda" else 3
    lens = [16 * (row % 7) + row + 1 for row in range(rows)]
    batch = make_batch(lens, num_heads=8, num_kv_heads=8, head_dim=64, page_size=16, dtype=HALF)
    work = make_work(batch, policy=SplitPolicy(16, 16))
    assert_close(run(batch, work), expect(batch), HALF)
    assert int(work.num_items) * 8 > 4 * num_processors(DEVICE)


@pytest.mark.parametrize("window", [1, 16, 37])
def test_decode_with_window_sees_the_last_keys_only(window: int) -> None:
    """A sliding window hides older keys, wherever its border falls in a page."""
    batch = make_batch(
        [1, 16, 53, 100], num_heads=2, num_kv_heads=1, head_dim=64, page_size=16,
        dtype=torch.float32,
    )  # fmt: skip
    work = make_work(batch, sliding_window=window, policy=SplitPolicy(16, 16))
    assert_close(run(batch, work), expect(batch, window=window), torch.float32)


def test_decode_with_softcap_bends_scores() -> None:
    """Soft-capped scores agree with the twin."""
    batch = make_batch(
        [1, 70], num_heads=4, num_kv_heads=2, head_dim=64, page_size=64, dtype=torch.float32
    )
    assert_close(run(batch, make_work(batch), 2.0), expect(batch, softcap=2.0), torch.float32)


def test_decode_caps_the_parts_of_a_long_sequence() -> None:
    """A sequence longer than parts x split takes longer parts and stays exact."""
    batch = make_batch(
        [16 * 23 + 5, 3], num_heads=2, num_kv_heads=1, head_dim=64, page_size=16,
        dtype=torch.float32,
    )  # fmt: skip
    work = make_work(batch, policy=SplitPolicy(16, 16, 4, 4))
    assert_close(run(batch, work), expect(batch), torch.float32)
    assert int(work.parts[0]) <= 4


def test_decode_row_does_not_depend_on_its_company() -> None:
    """A sequence alone and among strangers gives the same bits."""
    lens = [100, 33, 64, 210]
    batch = make_batch(
        lens, num_heads=4, num_kv_heads=2, head_dim=64, page_size=16, dtype=torch.float32
    )
    together = run(batch, make_work(batch, policy=SplitPolicy(32, 32)))
    for row in range(len(lens)):
        alone = PagedBatch(
            batch.q[row : row + 1], batch.k_pages, batch.v_pages,
            batch.block_table[row : row + 1], batch.context_lens[row : row + 1],
        )  # fmt: skip
        assert torch.equal(
            run(alone, make_work(alone, policy=SplitPolicy(32, 32)))[0], together[row]
        )


SHARED = {(0, 2, 3, 5): (0, 3), (3, 5): (3, 5), (1, 4): (0, 2)}


def grouped_work(batch: PagedBatch, groups: list[PrefixGroup]) -> DecodeWork:
    """Make a work list whose groups are `groups`."""
    num_rows, num_heads, _ = batch.q.shape
    tables = PrefixGroups(
        max_rows=num_rows, page_size=batch.k_pages.shape[2], num_heads=num_heads,
        num_kv_heads=batch.k_pages.shape[1], device=DEVICE, tile_rows=16, num_processors=4,
        min_saved_tokens=0,
    )  # fmt: skip
    tables.assign(groups)
    return make_work(batch, groups=tables, policy=SplitPolicy(2 * batch.k_pages.shape[2], 32))


@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads"),
    [
        (3, 1),
        pytest.param(4, 2, marks=pytest.mark.slow),
        pytest.param(8, 1, marks=pytest.mark.slow),
        pytest.param(2, 2, marks=pytest.mark.slow),
    ],
)
def test_grouped_decode_equals_twin_on_two_levels(num_heads: int, num_kv_heads: int) -> None:
    """Several groups, one under another, agree with reading every sequence on its own."""
    lens = [49, 33, 60, 100, 40, 81]
    batch = make_batch(
        lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=64, page_size=16,
        dtype=torch.float32, shared=SHARED,
    )  # fmt: skip
    groups = [PrefixGroup(rows, *pages) for rows, pages in SHARED.items()]
    work = grouped_work(batch, groups)
    first = run(batch, work)
    assert_close(first, expect(batch), torch.float32)
    assert torch.equal(run(batch, work), first)
    assert not work.arrivals.any()
    work.groups.clear()  # type: ignore[union-attr]  # made with groups just above
    assert_close(run(batch, work), expect(batch), torch.float32)


def test_grouped_decode_skips_members_that_ended_on_the_device() -> None:
    """A member of length zero gives zeros and does not disturb its group."""
    batch = make_batch(
        [49, 33, 60, 100, 40, 81], num_heads=4, num_kv_heads=2, head_dim=64, page_size=16,
        dtype=torch.float32, shared=SHARED,
    )  # fmt: skip
    work = grouped_work(batch, [PrefixGroup(rows, *pages) for rows, pages in SHARED.items()])
    batch.context_lens[2] = 0
    batch.q[2] = float("nan")
    assert_close(run(batch, work), expect(batch), torch.float32)
    assert not work.arrivals.any()


def query_batch(
    context_lens: list[int], query_lens: list[int], **shape: Any
) -> tuple[PagedBatch, QueryRows]:
    """Give each sequence several queries, the last of its tokens."""
    batch = make_batch(context_lens, **shape)
    borders = torch.tensor([0, *accumulate(query_lens)], dtype=torch.int32, device=DEVICE)
    num_rows, (_, num_heads, head_dim) = sum(query_lens), batch.q.shape
    rng = torch.Generator().manual_seed(1)
    batch.q = torch.randn(num_rows, num_heads, head_dim, generator=rng).to(DEVICE, batch.q.dtype)
    return batch, QueryRows(borders, max(query_lens))


# Tiles of more queries take the interpreter seconds each.
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "page_size", "dtype", "window", "most"),
    [
        (3, 1, 16, torch.float32, 20, 4),
        pytest.param(6, 2, 16, torch.float32, None, 16, marks=pytest.mark.slow),
        pytest.param(6, 2, 16, torch.float32, 5, 16, marks=pytest.mark.slow),
        pytest.param(4, 1, 64, HALF, None, 16, marks=pytest.mark.slow),
        pytest.param(8, 8, 32, torch.float32, 40, 16, marks=pytest.mark.slow),
    ],
)
def test_queries_of_a_sequence_equal_those_of_a_prompt(
    num_heads: int,
    num_kv_heads: int,
    page_size: int,
    dtype: torch.dtype,
    window: int | None,
    most: int,
) -> None:
    """Rows of one and of many queries, cut in parts, around page borders, padded with none."""
    context_lens = [1, page_size + 3, 0, 3 * page_size + 1]
    query_lens = [1, 4, 2, 1]
    if most > max(query_lens):
        context_lens += [5 * page_size, 9, 0]
        query_lens += [9, 9, most]
    batch, queries = query_batch(
        context_lens, query_lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=64,
        page_size=page_size, dtype=dtype,
    )  # fmt: skip
    work = make_work(batch, sliding_window=window, policy=SplitPolicy(page_size, 2 * page_size))
    expected = reference.paged_prefill(
        batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens,
        queries.cu_seqlens_q, scale=0.125, sliding_window=window,
    )  # fmt: skip
    for _ in range(2):
        work.build(batch.context_lens, queries.max_query_len)
        out = torch.full_like(batch.q, float("nan"))
        paged_decode(
            batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens, work,
            scale=0.125, queries=queries, out=out,
        )  # fmt: skip
        assert_close(out, expected, dtype)
        assert not work.arrivals.any()


def test_group_that_does_not_start_at_its_rows_is_refused() -> None:
    """A second-level run has to begin where the first one ends."""
    tables = PrefixGroups(
        max_rows=4, page_size=16, num_heads=4, num_kv_heads=2, device=DEVICE, min_saved_tokens=0
    )
    with pytest.raises(KernelInputError, match="stands at page 0"):
        tables.assign([PrefixGroup((0, 1), 2, 4)])


def test_mismatched_pages_are_refused() -> None:
    """Pages of another size than the work list was made for raise instead of reading wildly."""
    batch = make_batch(
        [3], num_heads=2, num_kv_heads=1, head_dim=64, page_size=16, dtype=torch.float32
    )
    work = make_work(batch)
    batch.k_pages = batch.v_pages = batch.k_pages[:, :, :8].contiguous()
    with pytest.raises(KernelInputError, match="work list was made for"):
        run(batch, work)


def test_drafts_of_a_lone_sequence_leave_room_beside_them() -> None:
    """One tile is in flight as with a lone row, so that the next product's weights may come."""
    of_row = choose_tuning(1, 256, grouped=False)
    assert choose_tuning(2, 256, grouped=False, several=True) == of_row
    assert choose_tuning(8, 256, grouped=False, several=True).depth > of_row.depth
