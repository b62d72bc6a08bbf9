"""The sampling kernels against their fp64 twin and against the engine's own sampler."""

from __future__ import annotations

import pytest
import torch
from models.paged_batch import DEVICE, DTYPES, HALF
from models.sampling_rows import columns_of, columns_with_uniforms

from tokenbus.engine.sampling.random_draw import uniforms
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams
from tokenbus.kernels import reference
from tokenbus.kernels.draw_outcomes import BROKEN_ROW, EMPTY_ROW
from tokenbus.kernels.launch import KernelInputError
from tokenbus.kernels.sampling.draw_rows import draw_rows
from tokenbus.kernels.sampling.workspace import SamplingWorkspace

pytestmark = pytest.mark.each_value

# Temperature, top-k, top-p, min-p: none alone, each alone, pairs, all; loose and tight.
FILTERS = [
    (1.0, 0, 1.0, 0.0),
    (0.6, 20, 1.0, 0.0),
    (1.0, 1, 1.0, 0.0),
    (1.3, 400, 1.0, 0.0),
    (0.8, 0, 0.9, 0.0),
    (2.0, 0, 0.999, 0.0),
    (1.0, 0, 1e-4, 0.0),
    (1.0, 0, 1.0, 0.05),
    (1.0, 0, 1.0, 1.0),
    (0.7, 20, 0.95, 0.0),
    (1.5, 3000, 0.5, 0.0),
    (1.0, 50, 1.0, 0.02),
    (1.0, 0, 0.8, 0.01),
    (0.9, 64, 0.9, 0.03),
    (1e-5, 40, 0.9, 0.0),
]
# Each alone and two together.
FEW_FILTERS = {FILTERS[1], FILTERS[4], FILTERS[7], FILTERS[9]}


def make_logits(num_rows: int, vocab_size: int, spread: float, dtype: torch.dtype) -> torch.Tensor:
    """Draw rows of logits around -3, so that a zero in their place would win."""
    rng = torch.Generator().manual_seed(vocab_size)
    logits = torch.randn(num_rows, vocab_size, generator=rng) * spread - 3.0
    return logits.to(DEVICE, dtype)


def poisoned(num_rows: int, vocab_size: int) -> SamplingWorkspace:
    """Return scratch in which whatever is read before it is written shows."""
    workspace = SamplingWorkspace(num_rows, vocab_size, DEVICE)
    for name, held in vars(workspace).items():
        if isinstance(held, torch.Tensor):
            held.fill_(1 << 30 if name == "group_ids" else float("nan"))
    return workspace


def draw(
    logits: torch.Tensor,
    filters: list[tuple[float, int, float, float]],
    u: torch.Tensor,
    is_random: torch.Tensor | None = None,
    workspace: SamplingWorkspace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample one row per entry of `filters`, by the kernel and by the twin."""
    num_rows, vocab_size = logits.shape
    assert len(filters) == num_rows
    if is_random is None:
        is_random = torch.ones(num_rows, dtype=torch.int64, device=DEVICE)
    positions = torch.arange(num_rows, device=DEVICE) * 3
    columns = columns_with_uniforms(filters, u.tolist(), is_random.tolist(), positions.tolist())
    columns = type(columns)(*(held.to(DEVICE) for held in columns))
    rows = torch.arange(num_rows, device=DEVICE)
    token_ids = draw_rows(
        logits, columns, rows, positions, workspace or poisoned(num_rows, vocab_size),
        has_filters=any(each[1:] != (0, 1.0, 0.0) for each in filters),
    )  # fmt: skip
    temperature, top_p, min_p = columns.floats[:num_rows, :3].unbind(-1)
    top_k = columns.ints[:num_rows, 2]
    drawn_at = uniforms(columns.ints[:num_rows, 0], columns.ints[:num_rows, 1], positions)
    scalars = (temperature, top_k, top_p, min_p, drawn_at, is_random)
    return token_ids, reference.draw_rows(logits, *scalars)


# Rows of another shape than those of the quick run take the same paths.
@pytest.mark.parametrize(
    ("vocab_size", "dtype", "spread"),
    [
        (1, HALF, 4.0),
        (63, torch.float32, 0.2),
        (4097, torch.float32, 4.0),
        (13001, HALF, 0.2),
        pytest.param(4096, HALF, 0.2, marks=pytest.mark.slow),
        pytest.param(4097, torch.float32, 0.2, marks=pytest.mark.slow),
        pytest.param(13001, HALF, 4.0, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_draws_equal_twin_in_a_mixed_batch(
    vocab_size: int, dtype: torch.dtype, spread: float
) -> None:
    """Greedy, free and filtered rows of one launch agree with sorting every row."""
    filters = FILTERS
    logits = make_logits(len(filters), vocab_size, spread, dtype)
    u = torch.rand(len(filters), dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    is_random = torch.arange(len(filters), device=DEVICE) % 7 > 0
    token_ids, expected = draw(logits, filters, u, is_random)
    assert token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "filters",
    [
        each if each in FEW_FILTERS else pytest.param(each, marks=pytest.mark.slow)
        for each in FILTERS
    ],
    ids=str,
)
def test_draws_cover_the_kept_tokens_from_end_to_end(
    filters: tuple[float, int, float, float],
) -> None:
    """Uniforms from 0 to just under 1 reach the first and the last kept token, as the twin's."""
    u = torch.tensor([0.0, 0.001, 0.3, 0.7, 0.999]).double()
    logits = make_logits(1, 4500, 2.5, torch.float32).expand(5, -1)
    token_ids, expected = draw(logits, [filters] * 5, u)
    assert token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("filters", [(0.7, 20, 0.95, 0.0), (1.0, 0, 0.9, 0.05), (1.2, 0, 1.0, 0.0)])
def test_draws_equal_those_of_the_engine(filters: tuple[float, int, float, float]) -> None:
    """At the engine's seed and positions the kernel draws what the engine's sampler draws."""
    temperature, top_k, top_p, min_p = filters
    params = SamplingParams(
        temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, seed=7, max_tokens=99
    )
    state = SamplingState(12, 6000, "cpu")
    logits = make_logits(12, 6000, 3.0, torch.float32).cpu()
    for row in range(12):
        state.set_row(row, params, row, [1])
    rows = torch.arange(12)
    expected = state.sample(logits, rows, rows + 5).token_ids
    columns = columns_of([params] * 12, list(range(12)))
    columns = type(columns)(*(held.to(DEVICE) for held in columns))
    token_ids = draw_rows(
        logits.to(DEVICE), columns, rows.to(DEVICE), rows.to(DEVICE) + 5, poisoned(12, 6000)
    )
    assert token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("value", [0.0, 5.0, -1e30])
def test_draws_among_equal_logits_keep_all_ties(value: float) -> None:
    """A row of one value has no smaller cut than that value: every filter keeps all of it."""
    filters = [(1.0, 10, 1.0, 0.0), (1.0, 0, 0.5, 0.0), (1.0, 10, 0.5, 0.5)]
    logits = torch.full((3, 10000), value, device=DEVICE)
    token_ids, _ = draw(logits, filters, torch.full((3,), 0.75))
    assert token_ids.tolist() == [7500] * 3


def test_draws_from_a_flat_row_narrow_it_by_passes() -> None:
    """Rows with more candidates than the list holds still end with the exact cut."""
    filters = [(1.0, 9000, 1.0, 0.0), (1.0, 0, 0.7, 0.0), (1.0, 15000, 0.9, 0.0)]
    logits = make_logits(3, 20000, 0.5, torch.float32)
    logits[:, 100:200] = float("-inf")
    u = torch.tensor([0.1, 0.5, 0.93], dtype=torch.float64)
    token_ids, expected = draw(logits, filters, u)
    assert token_ids.tolist() == expected.tolist()


def test_forbidden_tokens_are_never_drawn() -> None:
    """With three tokens allowed, filters that would keep more draw from the three."""
    logits = torch.full((4, 9000), float("-inf"), device=DEVICE)
    logits[:, torch.tensor([17, 5000, 8999], device=DEVICE)] = torch.tensor([1.0, 2.0, 1.5]).to(
        DEVICE
    )
    filters = [(1.0, 50, 1.0, 0.0), (1.0, 50, 0.99, 0.0), (1.0, 0, 0.99, 0.0), (1.0, 0, 1.0, 0.0)]
    for u in (0.0, 0.3, 0.999999):
        token_ids, expected = draw(logits, filters, torch.full((4,), u))
        assert token_ids.tolist() == expected.tolist()


@DTYPES
def test_rows_without_a_distribution_are_told(dtype: torch.dtype) -> None:
    """Rows with NaN or plus infinity, in one place or all, are broken; all -inf is an empty one."""
    logits = make_logits(9, 5000, 1.0, dtype)
    logits[0] = float("nan")
    logits[1] = float("-inf")
    logits[2, 4321] = float("inf")
    logits[3:6, 77] = float("nan")
    logits[6] = float("-inf")
    logits[7, :4999] = float("-inf")
    filters = [(1.0, 10, 0.9, 0.1)] * 4 + [(1.0, 0, 1.0, 0.0)] * 5
    is_random = torch.tensor([1, 1, 1, 1, 1, 0, 0, 1, 1], device=DEVICE)
    token_ids, expected = draw(logits, filters, torch.full((9,), 0.5), is_random)
    assert token_ids.tolist() == expected.tolist()
    broken, empty = BROKEN_ROW, EMPTY_ROW
    assert token_ids[:7].tolist() == [broken, empty, broken, broken, broken, broken, empty]
    assert token_ids[7] == 4999


def test_argmax_takes_the_first_of_equal_maxima() -> None:
    """A tie goes to the smallest token id, within a chunk and across chunks."""
    logits = torch.zeros(3, 9000, device=DEVICE)
    logits[0, [8000, 300, 301]] = 4.0
    logits[1, [8999, 4096]] = 4.0
    is_random = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    token_ids, _ = draw(logits, [FILTERS[0]] * 3, torch.zeros(3), is_random)
    assert token_ids.tolist() == [300, 4096, 0]


def test_row_does_not_depend_on_its_company() -> None:
    """A row draws the same token alone and in a batch that compiles filters in."""
    logits = make_logits(len(FILTERS), 5000, 3.0, torch.float32)
    u = torch.rand(len(FILTERS), generator=torch.Generator().manual_seed(5))
    together, _ = draw(logits, FILTERS, u)
    for row, filters in enumerate(FILTERS):
        alone, _ = draw(logits[row : row + 1], [filters], u[row : row + 1])
        assert alone.item() == together[row].item()


def test_logits_of_another_vocabulary_are_refused() -> None:
    """A workspace made for another vocabulary raises instead of being overrun."""
    workspace = SamplingWorkspace(2, 100, DEVICE)
    with pytest.raises(KernelInputError, match="100 held"):
        draw(
            make_logits(1, 101, 1.0, torch.float32), FILTERS[:1], torch.zeros(1),
            workspace=workspace,
        )  # fmt: skip
