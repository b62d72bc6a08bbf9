"""Paged prefill attention against its fp32 twin."""

from typing import Any

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF, PagedBatch, assert_close, make_batch

from tokenbus.kernels import reference
from tokenbus.kernels.attention.hopper_prefill import hopper_prefill
from tokenbus.kernels.attention.paged_prefill import PrefillTuning, paged_prefill
from tokenbus.kernels.launch import KernelInputError

pytestmark = pytest.mark.each_value


def make_prefill(
    lens: list[tuple[int, int]],
    *,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 64,
    page_size: int = 16,
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
) -> tuple[PagedBatch, torch.Tensor]:
    """Build sequences of (tokens of this pass, tokens in all); return them and cu_seqlens_q."""
    batch = make_batch(
        [context for _, context in lens], num_heads=num_heads, num_kv_heads=num_kv_heads,
        head_dim=head_dim, page_size=page_size, dtype=dtype,
    )  # fmt: skip
    borders = torch.tensor([0, *(length for length, _ in lens)]).cumsum(0).int()
    rng = torch.Generator().manual_seed(1)
    q = torch.randn(int(borders[-1]) + padding, num_heads, head_dim, generator=rng)
    batch.q = q.to(DEVICE, dtype)
    batch.q[int(borders[-1]) :] = float("nan")
    return batch, borders.to(DEVICE)


def run(
    batch: PagedBatch,
    borders: torch.Tensor,
    *,
    window: int | None = None,
    softcap: float | None = None,
    tuning: PrefillTuning | None = None,
) -> torch.Tensor:
    """Attend into a NaN-filled output."""
    out = torch.full(batch.q.shape, float("nan"), dtype=batch.q.dtype, device=DEVICE)
    return paged_prefill(
        batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens, borders,
        scale=batch.q.shape[-1] ** -0.5, sliding_window=window, softcap=softcap, out=out,
        tuning=tuning,
    )  # fmt: skip


def expect(
    batch: PagedBatch,
    borders: torch.Tensor,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Compute the twin's result."""
    return reference.paged_prefill(
        batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens, borders,
        scale=batch.q.shape[-1] ** -0.5, sliding_window=window, softcap=softcap,
    )  # fmt: skip


@DTYPES
@pytest.mark.parametrize(
    ("num_heads", "num_kv_heads", "head_dim", "page_size"),
    [
        (4, 2, 64, 16), (3, 1, 64, 64), (2, 2, 128, 64), (8, 1, 64, 32), (2, 1, 96, 128),
        (2, 1, 256, 64),
    ],
    ids=lambda value: str(value),
)  # fmt: skip
def test_prefill_equals_twin_at_page_borders(
    num_heads: int, num_kv_heads: int, head_dim: int, page_size: int, dtype: torch.dtype
) -> None:
    """Lengths of one, of a page and around it, with and without a cached prefix, agree."""
    lens = [
        (1, 1), (page_size - 1, page_size - 1), (page_size, page_size), (0, 5),
        (page_size + 1, 2 * page_size + 1), (1, 3 * page_size), (7, 2 * page_size + 3),
    ]  # fmt: skip
    batch, borders = make_prefill(
        lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim,
        page_size=page_size, dtype=dtype,
    )  # fmt: skip
    assert_close(run(batch, borders), expect(batch, borders), dtype)


TUNINGS = [
    PrefillTuning(64, 32, 4, 3, 1, False),
    PrefillTuning(64, 32, 4, 5, 3, True),
    PrefillTuning(32, 16, 4, 3, 3, True),
    PrefillTuning(32, 64, 4, 5, 1, False),
]


@pytest.mark.parametrize("tuning", TUNINGS, ids=str)
def test_prefill_in_every_layout_equals_twin(tuning: PrefillTuning) -> None:
    """The size of tiles and the copy engine change nothing but the order of sums."""
    batch, borders = make_prefill(
        [(70, 200), (9, 150), (130, 130)], page_size=32, head_dim=64, dtype=HALF
    )
    assert_close(run(batch, borders, tuning=tuning), expect(batch, borders), HALF)


@pytest.mark.parametrize("window", [1, 16, 37, 100])
def test_prefill_with_window_sees_the_last_keys_only(window: int) -> None:
    """A sliding window hides older keys, wherever its border falls in a tile."""
    batch, borders = make_prefill([(1, 1), (16, 16), (40, 130), (3, 99), (90, 90)])
    out = run(batch, borders, window=window)
    assert_close(out, expect(batch, borders, window=window), torch.float32)


def test_prefill_with_softcap_bends_scores() -> None:
    """Soft-capped scores agree with the twin."""
    batch, borders = make_prefill([(1, 40), (70, 90)], page_size=64)
    out = run(batch, borders, softcap=2.0)
    assert_close(out, expect(batch, borders, softcap=2.0), torch.float32)


LONG = [
    ([(300, 300)], 16, 8, 64, 0),
    ([(1, 1), (64, 64), (65, 65), (0, 5), (700, 700), (129, 129), (1, 40)], 16, 8, 64, 0),
    ([(5, 82), (300, 1300), (1000, 1064)], 32, 8, 64, 0),
    ([(130, 130), (7, 507)], 32, 4, 64, 300),
    ([(500, 500), (333, 462)], 28, 4, 128, 0),
    ([(777, 817)], 8, 8, 64, 70),
]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
@pytest.mark.parametrize("case", LONG, ids=lambda case: f"{case[1]}-{case[2]}-{case[0][0]}")
def test_kernel_of_long_prompts_equals_twin(case: tuple[Any, ...]) -> None:
    """Ends of pages and tiles, cached prefixes and padding leave no trace, and no bit varies."""
    lens, num_heads, num_kv_heads, page_size, padding = case
    batch, borders = make_prefill(
        lens, num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=128, page_size=page_size,
        dtype=HALF, padding=padding,
    )  # fmt: skip
    outs = [
        hopper_prefill(
            batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens, borders,
            scale=128**-0.5, out=torch.full_like(batch.q, float("nan")),
        )
        for _ in range(2)
    ]  # fmt: skip
    assert_close(outs[0], expect(batch, borders), HALF)
    assert torch.equal(*outs)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="Gluon has no interpreter")
def test_long_prompts_have_a_kernel_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the tokens of a prompt on average, unless scores are bent or keys hidden."""
    asked: list[int] = []

    def noted(q: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        asked.append(len(q))
        return hopper_prefill(q, *args, **options)

    monkeypatch.setattr("tokenbus.kernels.attention.paged_prefill.hopper_prefill", noted)
    for lens in ([(1500, 1500), (700, 700)], [(1000, 3000)], [(1100, 1100), (600, 600)]):
        batch, borders = make_prefill(
            lens, num_heads=2, num_kv_heads=1, head_dim=128, page_size=64, dtype=HALF
        )
        assert_close(run(batch, borders), expect(batch, borders), HALF)
    run(*make_prefill([(1500, 1500)], head_dim=128, page_size=64, dtype=HALF), window=100)
    assert asked == [2200]


def test_prefill_zeroes_the_rows_behind_the_last_sequence() -> None:
    """Tokens that pad a pass to its bucket give zeros, whatever their queries hold."""
    batch, borders = make_prefill([(5, 20), (33, 33)], padding=50)
    out = run(batch, borders)
    assert_close(out, expect(batch, borders), torch.float32)
    assert not out[38:].any()


def test_prefill_finds_its_sequence_among_many() -> None:
    """More sequences than one look at the borders holds, most of them empty, stay exact."""
    lens = [(0, 3)] * 300
    lens[0], lens[257], lens[299] = (2, 2), (3, 20), (1, 17)
    batch, borders = make_prefill(lens, num_heads=2, num_kv_heads=1)
    assert_close(run(batch, borders), expect(batch, borders), torch.float32)


def test_prefill_row_does_not_depend_on_its_company() -> None:
    """A sequence alone and among strangers gives the same bits."""
    lens = [(30, 100), (33, 33), (1, 64), (50, 210)]
    batch, borders = make_prefill(lens)
    together = run(batch, borders)
    for n, (length, _) in enumerate(lens):
        first = int(borders[n])
        alone = PagedBatch(
            batch.q[first : first + length], batch.k_pages, batch.v_pages,
            batch.block_table[n : n + 1], batch.context_lens[n : n + 1],
        )  # fmt: skip
        border = torch.tensor([0, length], dtype=torch.int32, device=DEVICE)
        assert torch.equal(run(alone, border), together[first : first + length])


def test_prefill_reads_queries_out_of_a_wider_tensor() -> None:
    """Queries may be a slice of a fused projection's output."""
    batch, borders = make_prefill([(20, 50), (3, 3)])
    expected = run(batch, borders)
    wide = torch.full((23, 4 * 64 + 128), float("nan"), device=DEVICE)
    wide[:, : 4 * 64] = batch.q.flatten(1)
    batch.q = wide[:, : 4 * 64].view(23, 4, 64)
    out = paged_prefill(
        batch.q, batch.k_pages, batch.v_pages, batch.block_table, batch.context_lens, borders,
        scale=0.125,
    )  # fmt: skip
    assert torch.equal(out, expected)


def test_prefill_refuses_borders_of_another_batch() -> None:
    """Borders that do not fit the number of sequences raise instead of reading wildly."""
    batch, borders = make_prefill([(3, 3), (2, 2)])
    with pytest.raises(KernelInputError, match="borders"):
        run(batch, borders[:2])
