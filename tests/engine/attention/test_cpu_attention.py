"""Paged attention on a CPU against a plain fp32 computation, over poisoned memory."""

from __future__ import annotations

import random

import pytest
import torch

from tokenbus.engine.attention.native_attention import NativeAttention
from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.attention.torch_plan import MAX_BUCKET_TOKENS, MAX_PADDING_TOKENS, plan_of
from tokenbus.engine.interfaces import ForwardContext, PagedAttention
from tokenbus.engine.kv_cache import AttentionSpec, KVCache
from tokenbus.engine.native_library import native_library

pytestmark = pytest.mark.each_value

_CPU = torch.device("cpu")
# (queries of this pass, tokens after it) per sequence.
_DECODES = [(1, 1), (1, 15), (1, 16), (1, 17), (1, 64), (1, 65), (1, 300)]
_PREFILLS = [(2, 2), (16, 16), (17, 33), (130, 130), (150, 401)]
_MIXED = [(1, 40), (7, 7), (1, 129), (140, 200), (1, 3)]


class _Batch:
    """Sequences with random keys and values, in pages of random order, NaN everywhere else."""

    def __init__(
        self, spec: AttentionSpec, lens: list[tuple[int, int]], size: int, dtype: torch.dtype
    ) -> None:
        rng = random.Random(1)
        torch.manual_seed(1)
        self.spec, self.lens = spec, lens
        counts = [-(-context // size) for _, context in lens]
        free = list(range(1, sum(counts) + 8))
        rng.shuffle(free)
        tables = [[free.pop() for _ in range(count)] for count in counts]
        self.kv = KVCache([spec], sum(counts) + 8, size, dtype, _CPU)
        self.kv.k[0].fill_(torch.nan)
        self.kv.v[0].fill_(torch.nan)
        num_tokens = sum(queries for queries, _ in lens)
        self.q = torch.randn(num_tokens, spec.num_heads, spec.head_dim).to(dtype)
        self.keys, self.values, slots, positions = [], [], [], []
        for (queries, context), pages in zip(lens, tables, strict=True):
            shape = (context, spec.num_kv_heads, spec.head_dim)
            self.keys.append(torch.randn(shape).to(dtype))
            self.values.append(torch.randn(shape).to(dtype))
            where = torch.arange(context)
            page, offset = torch.tensor(pages)[where // size], where % size
            old = context - queries
            self.kv.k[0][page[:old], :, offset[:old]] = self.keys[-1][:old]
            self.kv.v[0][page[:old], :, offset[:old]] = self.values[-1][:old]
            slots.append((page * size + offset)[old:])
            positions.append(where[old:])
        self.k = torch.cat([x[-n:] for x, (n, _) in zip(self.keys, lens, strict=True)])
        self.v = torch.cat([x[-n:] for x, (n, _) in zip(self.values, lens, strict=True)])
        width = max(counts)
        query_lens = [queries for queries, _ in lens]
        self.ctx = ForwardContext(
            kv=self.kv,
            positions=torch.cat(positions),
            slot_mapping=torch.cat(slots),
            # The fill would be out of range if it were ever read.
            block_table=torch.tensor(
                [pages + [10**8] * (width - len(pages)) for pages in tables], dtype=torch.int32
            ),
            context_lens=torch.tensor([context for _, context in lens], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
            query_lens=query_lens,
            context_lens_host=[context for _, context in lens],
        )

    def attend(self, backend: PagedAttention) -> torch.Tensor:
        return backend.attend(self.q, self.k, self.v, self.spec, self.ctx)

    def expected(self) -> torch.Tensor:
        """Return softmax(cap(q·k)) v in float32, one sequence at a time."""
        spec, rows, start = self.spec, [], 0
        group = spec.num_heads // spec.num_kv_heads
        for (queries, context), keys, values in zip(self.lens, self.keys, self.values, strict=True):
            q = self.q[start : start + queries].float()
            k = keys.float().repeat_interleave(group, 1)
            v = values.float().repeat_interleave(group, 1)
            scores = torch.einsum("qhd,khd->hqk", q, k) * spec.scale
            if spec.softcap is not None:
                scores = spec.softcap * torch.tanh(scores / spec.softcap)
            age = torch.arange(context - queries, context)[:, None] - torch.arange(context)
            hidden = age < 0
            if spec.sliding_window is not None:
                hidden |= age >= spec.sliding_window
            weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            rows.append(torch.einsum("hqk,khd->qhd", weights, v))
            start += queries
        return torch.cat(rows)


@pytest.fixture(params=["torch", "compiled"])
def backend(request: pytest.FixtureRequest) -> PagedAttention:
    """Return each attention of the CPU."""
    if request.param == "torch":
        return TorchAttention()
    library = native_library()
    if library is None:
        pytest.skip("there is no C++ compiler")
    return NativeAttention(library)


def _spec(
    heads: int, kv_heads: int, dim: int, window: int | None = None, softcap: float | None = None
) -> AttentionSpec:
    return AttentionSpec(0, heads, kv_heads, dim, 0.7 * dim**-0.5, window, softcap)


@pytest.mark.parametrize("lens", [_DECODES, _PREFILLS, _MIXED], ids=["decode", "prefill", "mixed"])
@pytest.mark.parametrize("size", [1, 16, 64])
@pytest.mark.parametrize(
    "spec",
    [_spec(9, 3, 64), _spec(4, 4, 24), _spec(8, 1, 16, 20), _spec(6, 2, 32, 64, 3.0)],
    ids=["Hq9-Hkv3-D64", "Hq4-Hkv4-D24", "Hq8-Hkv1-D16-window20", "Hq6-Hkv2-D32-window64-cap3"],
)
def test_attention_equals_plain_softmax(
    backend: PagedAttention, spec: AttentionSpec, size: int, lens: list[tuple[int, int]]
) -> None:
    """Whatever the pages' order and size, the result is causal attention over the own tokens."""
    batch = _Batch(spec, lens, size, torch.float32)
    torch.testing.assert_close(batch.attend(backend), batch.expected(), atol=2e-6, rtol=2e-5)


@pytest.mark.parametrize("lens", [_DECODES, _MIXED], ids=["decode", "mixed"])
def test_bfloat16_stays_within_rounding(
    backend: PagedAttention, lens: list[tuple[int, int]]
) -> None:
    """In bfloat16 only scores, weights and the result are rounded, never the sums."""
    batch = _Batch(_spec(9, 3, 64), lens, 16, torch.bfloat16)
    torch.testing.assert_close(
        batch.attend(backend).float(), batch.expected(), atol=0.02, rtol=0.02
    )


def test_new_tokens_are_written_to_their_slots_and_nowhere_else(backend: PagedAttention) -> None:
    """After a pass the pages hold its keys and values, and what was poisoned elsewhere still is."""
    batch = _Batch(_spec(4, 2, 16), _MIXED, 16, torch.float32)
    batch.attend(backend)
    page, offset = batch.ctx.slot_mapping // 16, batch.ctx.slot_mapping % 16
    torch.testing.assert_close(batch.kv.k[0][page, :, offset], batch.k)
    torch.testing.assert_close(batch.kv.v[0][page, :, offset], batch.v)
    written = sum(context for _, context in _MIXED) * 2 * 16
    assert int(batch.kv.k[0].isfinite().sum()) == written
    assert int(batch.kv.v[0].isfinite().sum()) == written


def test_rows_on_the_scratch_page_disturb_nobody(backend: PagedAttention) -> None:
    """A dropped row that writes NaN to page 0 changes no result of the others."""
    batch = _Batch(_spec(4, 2, 16), [(1, 20), (1, 1), (1, 33)], 16, torch.float32)
    ctx = batch.ctx
    ctx.slot_mapping[1], ctx.block_table[1, 0] = 0, 0
    batch.k[1], batch.v[1] = torch.nan, torch.nan
    out, expected = batch.attend(backend), batch.expected()
    torch.testing.assert_close(out[[0, 2]], expected[[0, 2]], atol=2e-6, rtol=2e-5)


def test_result_does_not_depend_on_the_rest_of_the_batch(backend: PagedAttention) -> None:
    """A sequence attends to the same values alone and among strangers of any length."""
    together = _Batch(_spec(9, 3, 64), _DECODES, 16, torch.float32)
    both = together.attend(backend)
    for idx, lens in enumerate(_DECODES):
        alone = _Batch(_spec(9, 3, 64), [lens], 16, torch.float32)
        alone.q, alone.k, alone.v = (x[idx : idx + 1] for x in (together.q, together.k, together.v))
        alone.ctx.slot_mapping = together.ctx.slot_mapping[idx : idx + 1]
        alone.ctx.block_table = together.ctx.block_table[idx : idx + 1]
        alone.ctx.kv = together.kv
        torch.testing.assert_close(alone.attend(backend)[0], both[idx], atol=2e-6, rtol=2e-5)


def test_layers_of_one_shape_share_a_plan() -> None:
    """The plan is built once per pass for all layers with the same heads and window."""
    batch = _Batch(_spec(4, 2, 16), _MIXED, 16, torch.float32)
    windowed = _spec(4, 2, 16, window=8)
    assert plan_of(batch.ctx, batch.spec) is plan_of(batch.ctx, batch.spec)
    assert plan_of(batch.ctx, windowed) is not plan_of(batch.ctx, batch.spec)


def test_buckets_bound_padding_and_size() -> None:
    """Short sequences are not padded to the longest, and no bucket gathers without bound."""
    lens = [(1, context) for context in (3000, 16, 2900, 20, 900, 16, 40, 2800, 10, 950)] * 4
    batch = _Batch(_spec(2, 1, 8), lens, 16, torch.float32)
    plan = plan_of(batch.ctx, batch.spec)
    assert sorted(int(idx) for b in plan.buckets for idx in b.token_idx) == list(range(len(lens)))
    for bucket in plan.buckets:
        pages = [-(-lens[int(idx)][1] // 16) * 16 for idx in bucket.token_idx]
        assert sum(bucket.num_keys - page for page in pages) <= MAX_PADDING_TOKENS
        assert len(pages) * bucket.num_keys <= max(MAX_BUCKET_TOKENS, bucket.num_keys)
    torch.testing.assert_close(
        batch.attend(TorchAttention()), batch.expected(), atol=2e-6, rtol=2e-5
    )
