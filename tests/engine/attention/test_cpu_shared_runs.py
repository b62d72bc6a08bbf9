"""Decode attention on a CPU over runs of pages that several sequences hold, and over parts."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.native_library import native_library
from tokenbus.engine.scheduling.prefix_grouping import SharedRun, find_shared_runs

pytestmark = pytest.mark.each_value

_CPU = torch.device("cpu")


class _Forest:
    """Decoding rows whose pages form trees, behind rows of a prompt, over poisoned memory.

    `tails` says after which pages of which prefix each row goes on alone, and by how many tokens.
    """

    def __init__(
        self,
        spec: AttentionSpec,
        size: int,
        prefixes: list[tuple[int, int]],
        tails: list[tuple[int, bool, int]],
        dtype: torch.dtype,
        prompt: tuple[int, int] | None = None,
    ) -> None:
        """Lay out prefixes of (first-level, second-level) pages and rows (prefix, both, tokens)."""
        torch.manual_seed(3)
        rng = random.Random(3)
        prompts = [] if prompt is None else [prompt]
        counts = [-(-tokens // size) for _, _, tokens in tails]
        counts += [-(-context // size) for _, context in prompts]
        num_pages = 4 + sum(sum(pages) for pages in prefixes) + sum(counts)
        free = list(range(1, num_pages))
        rng.shuffle(free)
        levels = [[[free.pop() for _ in range(n)] for n in pages] for pages in prefixes]
        self.tables = [[free.pop() for _ in range(-(-context // size))] for _, context in prompts]
        self.lens = list(prompts)
        self.num_decode = len(tails)
        for prefix, both, tokens in tails:
            head = levels[prefix][0] + (levels[prefix][1] if both else [])
            self.tables.append(head + [free.pop() for _ in range(-(-tokens // size))])
            self.lens.append((1, len(head) * size + tokens))
        self.kv = KVCache([spec], num_pages, size, dtype, _CPU)
        self.kv.k[0].fill_(torch.nan)
        self.kv.v[0].fill_(torch.nan)
        for (queries, context), table in zip(self.lens, self.tables, strict=True):
            past = torch.arange(context - queries)
            page = torch.tensor(table)[past // size]
            for pages in (self.kv.k[0], self.kv.v[0]):
                shape = (len(past), spec.num_kv_heads, spec.head_dim)
                pages[page, :, past % size] = (2 * torch.randn(shape)).to(dtype)
        total = sum(queries for queries, _ in self.lens)
        self.spec, self.size = spec, size
        self.q = torch.randn(total, spec.num_heads, spec.head_dim).to(dtype)
        self.k = torch.randn(total, spec.num_kv_heads, spec.head_dim).to(dtype)
        self.v = torch.randn(total, spec.num_kv_heads, spec.head_dim).to(dtype)

    def runs(self) -> list[SharedRun]:
        """Find every run, however short."""
        lens = [context for _, context in self.lens[-self.num_decode :]]
        return find_shared_runs(
            self.tables[-self.num_decode :],
            [(context - 1) // self.size for context in lens],
            lambda rows, pages: rows > 1 and pages > 0,
        )

    def attend(self, backend: TorchAttention | NativeAttention) -> torch.Tensor:
        """Attend; keys and values of this pass are written first, as in a layer."""
        width = max(map(len, self.tables))
        table = [pages + [10**8] * (width - len(pages)) for pages in self.tables]
        positions, slots = [], []
        for (queries, context), pages in zip(self.lens, self.tables, strict=True):
            positions.append(torch.arange(context - queries, context))
            page = torch.tensor(pages)[positions[-1] // self.size]
            slots.append(page * self.size + positions[-1] % self.size)
        query_lens = [queries for queries, _ in self.lens]
        ctx = ForwardContext(
            kv=self.kv,
            positions=torch.cat(positions),
            slot_mapping=torch.cat(slots),
            block_table=torch.tensor(table, dtype=torch.int32),
            context_lens=torch.tensor([context for _, context in self.lens], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
            query_lens=query_lens,
            context_lens_host=[context for _, context in self.lens],
            num_decode=self.num_decode,
        )
        return backend.attend(self.q, self.k, self.v, self.spec, ctx)


def _native() -> NativeAttention:
    library = native_library()
    if library is None:
        pytest.skip("there is no C++ compiler")
    return NativeAttention(library)


def _compare(forest: _Forest, num_threads: int, atol: float, rtol: float) -> None:
    ours = _native()
    runs = forest.runs()
    ours.assign_runs(runs)
    expected = forest.attend(TorchAttention())
    torch.set_num_threads(num_threads)
    try:
        together = forest.attend(ours)
        ours.assign_runs([])
        apart = forest.attend(ours)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(together.float(), expected.float(), atol=atol, rtol=rtol)
    torch.testing.assert_close(apart.float(), expected.float(), atol=atol, rtol=rtol)


def _spec(
    heads: int, kv_heads: int, dim: int, window: int | None = None, softcap: float | None = None
) -> AttentionSpec:
    return AttentionSpec(0, heads, kv_heads, dim, 0.7 * dim**-0.5, window, softcap)


_SPECS = {
    "Hq9-Hkv3-D64": _spec(9, 3, 64),
    "Hq4-Hkv4-D24": _spec(4, 4, 24),
    "Hq8-Hkv1-D20": _spec(8, 1, 20),
    "Hq6-Hkv2-D32-window40-cap3": _spec(6, 2, 32, 40, 3.0),
    "Hq6-Hkv2-D128-cap3": _spec(6, 2, 128, None, 3.0),
}
# Rows that fill a panel of queries, one more, and several blocks of them.
_ROWS = [2, 7, 16, 17, 70]


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_rows", _ROWS)
@pytest.mark.parametrize("name", _SPECS)
def test_shared_run_changes_no_result(name: str, num_rows: int, num_threads: int) -> None:
    """Read once for all rows or row by row, attention is that of torch in float32."""
    tails = [(row // 2 % 2, row % 3 == 0, 1 + 5 * row % 37) for row in range(num_rows)]
    forest = _Forest(_SPECS[name], 16, [(5, 3), (9, 1)], tails, torch.float32)
    assert forest.runs()
    _compare(forest, num_threads, 2e-6, 2e-5)


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("num_rows", _ROWS)
def test_shared_run_in_bfloat16_stays_within_rounding(num_rows: int, num_threads: int) -> None:
    """Queries, keys, values and weights are rounded, sums and softmax are not."""
    tails = [(row // 2 % 2, row % 3 == 0, 1 + 5 * row % 37) for row in range(num_rows)]
    forest = _Forest(_SPECS["Hq9-Hkv3-D64"], 16, [(5, 3), (9, 1)], tails, torch.bfloat16)
    _compare(forest, num_threads, 0.02, 0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lens", [(1, 700), (1, 2000), (1, 2049)], ids=str)
@pytest.mark.parametrize("name", _SPECS)
def test_long_context_in_parts_equals_the_whole(
    name: str, lens: tuple[int, int], dtype: torch.dtype
) -> None:
    """On several threads few long sequences are cut along their tokens; the result stays."""
    tails = [(0, True, lens[1]), (0, False, 3)]
    forest = _Forest(_SPECS[name], 16, [(1, 1)], tails, dtype)
    tolerance = (2e-6, 2e-5) if dtype == torch.float32 else (0.02, 0.02)
    for num_threads in (2, 3):
        _compare(forest, num_threads, *tolerance)


def test_long_run_in_parts_equals_the_whole() -> None:
    """A run of thousands of tokens is cut as well, and its rows merge all parts."""
    tails = [(0, row > 3, 3 + row) for row in range(9)]
    forest = _Forest(_SPECS["Hq9-Hkv3-D64"], 16, [(130, 60)], tails, torch.float32)
    for num_threads in (2, 3):
        _compare(forest, num_threads, 2e-6, 2e-5)


def test_runs_speak_of_decoding_rows_behind_prompts() -> None:
    """In a pass that begins with a prompt, rows of runs are counted from the first that decodes."""
    tails = [(0, row % 2 == 0, 3 + row) for row in range(6)]
    for prompt in ((30, 50), (1, 33)):
        forest = _Forest(_SPECS["Hq9-Hkv3-D64"], 16, [(4, 2)], tails, torch.float32, prompt)
        _compare(forest, 2, 2e-6, 2e-5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_forest_of_prefixes_gives_the_same(data: st.DataObject) -> None:
    """Whatever shares what, page sizes of one token included: groups are not seen in the result."""
    pages = st.tuples(st.integers(1, 5), st.integers(1, 5))
    prefixes = data.draw(st.lists(pages, min_size=1, max_size=3))
    tail = st.tuples(st.integers(0, len(prefixes) - 1), st.booleans(), st.integers(1, 70))
    tails = data.draw(st.lists(tail, min_size=1, max_size=24))
    spec = _SPECS[data.draw(st.sampled_from(sorted(_SPECS)))]
    size = data.draw(st.sampled_from([1, 3, 16, 64]))
    forest = _Forest(spec, size, prefixes, tails, torch.float32)
    _compare(forest, data.draw(st.integers(1, 3)), 2e-6, 2e-5)
