"""Sums over ranks: the same bits on all, what was sent is where the peers look, boxes end empty."""

import pytest
import torch
from models.paged_batch import DEVICE, HALF, assert_close
from models.rank_boxes import RankBoxes

from tokenbus.kernels import reference
from tokenbus.kernels.exchange import Exchange, exchange
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.linear.small_linear import Fusion, small_linear
from tokenbus.kernels.linear.table import LinearTuning


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    """Draw a tensor on the CPU, so that both devices test the same numbers."""
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=rng).to(DEVICE, dtype)


@pytest.mark.parametrize(
    ("size", "rows", "width", "is_normed", "dtype"),
    [
        pytest.param(2, 2, 1100, False, HALF, id="pieces-of-rows"),
        pytest.param(2, 2, 96, True, torch.float32, id="norm"),
        pytest.param(3, 1, 96, True, HALF, id="three-ranks-norm"),
    ],
)
def test_exchange_equals_twin_on_every_rank(
    size: int, rows: int, width: int, is_normed: bool, dtype: torch.dtype
) -> None:
    """The sum is taken in float32 and in the order of the ranks, the norm of it as it is."""
    ranks = RankBoxes(size, DEVICE)
    parts = [randn(rows, width, dtype=dtype, seed=seed) for seed in range(size)]
    residual, weight = randn(rows, width, seed=8), randn(width, seed=9).to(dtype)
    total = torch.zeros_like(residual)
    for part in parts:
        total += part.float()
    total += residual
    found = []
    for rank, part in enumerate(parts):
        among, added = ranks.arrived(parts, rank, rank % 2), torch.empty_like(residual)
        norm = (weight, 1e-6) if is_normed else None
        found.append(exchange(part, among, residual, added, norm))
        assert torch.equal(added, total)
        assert ranks.is_empty(rank)
        for peer in set(range(size)) - {rank}:
            sent = ranks.place(peer, rank % 2, rank, part.nbytes)
            assert torch.equal(sent, part.flatten().view(torch.uint8))
            sent.fill_(0xFF)
    assert all(torch.equal(out, found[0]) for out in found)
    assert_close(found[0], reference.rms_norm(total, weight, 1e-6) if is_normed else total, dtype)


def test_exchange_without_residual_is_the_sum() -> None:
    """What is not added to is not written either."""
    ranks = RankBoxes(2, DEVICE)
    parts = [randn(2, 64, seed=seed) for seed in range(2)]
    found = exchange(parts[1], ranks.arrived(parts, 1, 0))
    assert torch.equal(found, parts[0] + parts[1])


@pytest.mark.parametrize("rows", [1, 5])
def test_small_linear_sends_what_it_sums(rows: int) -> None:
    """Both ranks hold the same bits of the product over all inputs, and of the residual with it."""
    ranks, width, num_inputs = RankBoxes(2, DEVICE), 70, 128
    x, weight = randn(rows, 2 * num_inputs), randn(width, 2 * num_inputs, seed=1) * 0.1
    before = randn(rows, width, seed=2)
    halves = [
        (x[:, part].contiguous(), weight[:, part].contiguous())
        for part in (slice(num_inputs), slice(num_inputs, None))
    ]
    tuning = LinearTuning(16, 64, 4)
    products = [small_linear(*half, tuning=tuning) for half in halves]
    residuals = [before.clone() for _ in halves]
    for rank, (half, residual) in enumerate(zip(halves, residuals, strict=True)):
        fusion = Fusion(residual=residual, among=ranks.arrived(products, rank, 0))
        out = small_linear(*half, fusion, tuning=tuning)
        assert torch.equal(out, residual)
        assert ranks.is_empty(rank)
        sent = ranks.place(1 - rank, 0, rank, products[rank].nbytes)
        assert torch.equal(sent, products[rank].flatten().view(torch.uint8))
        sent.fill_(0xFF)
    assert torch.equal(*residuals)
    assert_close(residuals[0], reference.fused_linear(x, weight, residual=before), torch.float32)


def test_sums_left_to_the_library_are_exchanged_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shape for which the table has no layout is summed over ranks all the same."""
    monkeypatch.setattr("tokenbus.kernels.linear.small_linear.choose_tuning", lambda *_: None)
    ranks = RankBoxes(2, DEVICE)
    x, weight, residual = randn(2, 16), randn(40, 16, seed=1), randn(2, 40, seed=2)
    product, before = x @ weight.T, residual.clone()
    fusion = Fusion(residual=residual, among=ranks.arrived([product, product], 0, 1))
    assert_close(small_linear(x, weight, fusion), 2 * product + before, torch.float32)


def test_parts_that_cannot_be_sent_are_refused() -> None:
    """Numbers of eight bytes, parts past a place, and a residual that goes nowhere."""
    among = Exchange(RankBoxes(2, DEVICE, place_bytes=256).boxes[0], 0)
    with pytest.raises(KernelInputError, match="are not exchanged"):
        exchange(randn(1, 8).double(), among)
    with pytest.raises(KernelInputError, match="512 bytes are more than a place has"):
        exchange(randn(2, 64), among)
    with pytest.raises(KernelInputError, match="is written to added"):
        exchange(randn(1, 64), among, residual=randn(1, 64))
