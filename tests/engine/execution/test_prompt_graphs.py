"""Prompts in graphs: padded passes give the tokens of eager ones, whatever shares them."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.padded_runner import PaddedRunner
from models.scripted_drafts import ScriptedSpeculation
from models.triton_model import DEVICE, ON_GPU, TINY_SIZES, load_on_triton
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine import build
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.execution.drafting import Drafting
from tokenbus.engine.execution.prompt_graphs import (
    PassShape,
    PromptGraphs,
    replayed_tokens,
    row_buckets,
    token_buckets,
)
from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.kv_cache import KVCache
from tokenbus.engine.models.linear_weight import Fp8BlockWeight, Fp8Weight, PlainWeight
from tokenbus.engine.scheduling.plan import PrefillChunk
from tokenbus.engine.scheduling.sequence import Sequence
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from tokenbus.engine.engine import Engine
    from tokenbus.engine.weights.loader import LoadedModel

# The interpreter takes about 0.1 s per launch.
NUM_TOKENS = 30 if ON_GPU else 2
CONFIG = LlamaConfig(**(TINY_SIZES | ({} if ON_GPU else {"num_hidden_layers": 1})))


@pytest.fixture
def loaded() -> LoadedModel:
    """Return a tiny model of random weights in fp32 on the Triton backend."""
    torch.manual_seed(0)
    return load_on_triton(CONFIG, LlamaForCausalLM(CONFIG).state_dict(), max_rows=32)


def answers(engine: Any, prompts: list[tuple[int, ...]]) -> tuple[list[list[int]], list[float]]:
    """Add two prompts before each step; return each one's greedy tokens and prompt scores."""
    tokens: list[list[int]] = [[] for _ in prompts]
    scores: dict[int, list[float]] = {}
    waiting = list(enumerate(prompts))
    while engine.has_work or waiting:
        for idx, prompt in waiting[:2]:
            scored = 0 if idx == 1 else None
            params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, prompt_logprobs=scored)
            engine.add(Request(idx, prompt, params))
        del waiting[:2]
        for delta in engine.step().deltas:
            tokens[delta.request_id].extend(delta.token_ids)
            given = [score.logprob for score in delta.prompt_logprobs or () if score is not None]
            scores.setdefault(delta.request_id, []).extend(given)
        engine.check_integrity()
    assert set(map(len, tokens)) == {NUM_TOKENS}
    return tokens, scores[1]


def some_prompts() -> list[tuple[int, ...]]:
    """Return prompts of many lengths; some begin alike, two are longer than a page."""
    source = random.Random(4)
    lens = (1, 23, 64, 5, 70, 17) if ON_GPU else (1, 20, 5)
    prompts = [tuple(source.randrange(320) for _ in range(length)) for length in lens]
    return [*prompts, (*prompts[1], 7)]


def test_padded_passes_change_no_token(loaded: LoadedModel, monkeypatch: Any) -> None:
    """Alone, beside decoding rows and behind cached prefixes, padding is read by nobody."""
    config = EngineConfig("tiny", num_pages=80, page_size=16, max_num_seqs=4, cuda_graphs=False)
    expected = answers(engine_for(loaded, config), some_prompts())
    runners: list[PaddedRunner] = []

    def padded(*args: Any, **options: Any) -> PaddedRunner:
        runners.append(PaddedRunner(*args, **options))
        return runners[0]

    monkeypatch.setattr(build, "Runner", padded)
    tokens, scores = answers(engine_for(loaded, config), some_prompts())
    assert tokens == expected[0]
    assert scores == pytest.approx(expected[1], abs=1e-4)
    shapes = [shape for shape, _ in runners[0].prompts._passes]
    assert len(shapes) > 1
    assert {shape.num_rows > 0 for shape in shapes} == {True, False}


# Passes of the interpreter take a second each.
@pytest.mark.slow
def test_drafts_in_padded_passes_bring_the_tokens_of_plain_steps(monkeypatch: Any) -> None:
    """Rows of one sequence beside one that decodes, right up to the last: all in one step."""
    shape = LlamaConfig(**(TINY_SIZES | {"num_hidden_layers": 1}))
    torch.manual_seed(0)
    loaded = load_on_triton(shape, LlamaForCausalLM(shape).state_dict(), max_rows=16)
    config = EngineConfig("tiny", num_pages=80, page_size=16, max_num_seqs=4, cuda_graphs=False)
    prompts = [tuple(range(3, 20)), (7, 9)]
    params = SamplingParams(max_tokens=4, temperature=0.0)

    def tokens_of(engine: Engine) -> list[list[int]]:
        for idx, prompt in enumerate(prompts):
            engine.add(Request(idx, prompt, params))
        tokens: list[list[int]] = [[], []]
        while engine.has_work:
            for delta in engine.step().deltas:
                tokens[delta.request_id].extend(delta.token_ids)
            engine.check_integrity()
        return tokens

    expected = tokens_of(engine_for(loaded, config))
    monkeypatch.setattr(build, "Runner", PaddedRunner)
    engine = engine_for(loaded, config)
    # Of a step launched ahead the first of them comes without a draft.
    text = [*prompts[0], *expected[0][:3], 319]
    drafts = ScriptedSpeculation([text], most=8, vocab_size=320, wrong_in=10**9)
    engine._drafting = Drafting(drafts, engine._constrained)
    assert tokens_of(engine) == expected
    assert drafts.num_right >= (1 if ON_GPU else 2)
    runner: Any = engine._runner
    assert runner.drafts._passes


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_captured_passes_change_no_token(loaded: LoadedModel) -> None:
    """The same in graphs: some captured ahead, most amid serving, all replayed later."""
    runs = []
    for graphs in (False, True, True):
        config = EngineConfig("tiny", num_pages=200, max_num_seqs=32, cuda_graphs=graphs)
        engine = engine_for(loaded, config)
        runs.append(answers(engine, some_prompts()))
        if graphs:
            prompts: Any = engine._runner
            assert any(shape.num_rows for shape, _ in prompts._prompts._passes)
            assert answers(engine, some_prompts())[0] == runs[0][0]
    assert runs[1][0] == runs[2][0] == runs[0][0]
    assert runs[1][1] == pytest.approx(runs[0][1], abs=1e-4)


def graphs_of(loaded: LoadedModel, max_num_seqs: int, max_tokens: int) -> PromptGraphs:
    """Return graphs that capture nothing."""
    kv = KVCache(loaded.model.attention_specs, 4, 16, torch.float32, DEVICE)
    rows = RowState(max_num_seqs, 4, DEVICE)
    return PromptGraphs(loaded.model, kv, rows, max_tokens, lambda compute: compute)


@pytest.mark.parametrize("max_num_seqs", [1, 4, 100, 512])
def test_every_step_within_the_limit_finds_room(loaded: LoadedModel, max_num_seqs: int) -> None:
    """A graph holds what it was chosen for and at most a quarter more tokens of long prompts."""
    graphs = graphs_of(loaded, max_num_seqs, 4096)
    source = random.Random(max_num_seqs)
    for _ in range(500):
        num_seqs = source.randint(1, min(max_num_seqs, 200))
        num_tokens = source.randint(num_seqs, 4096)
        num_rows = source.randint(0, max_num_seqs - num_seqs)
        shape = graphs.shape(num_tokens, num_seqs, num_rows)
        assert shape is not None
        assert shape.num_tokens >= num_tokens
        assert shape.num_seqs >= num_seqs
        assert shape.num_rows >= num_rows
        if num_tokens > 64 and num_seqs <= 8:
            assert shape.num_tokens <= num_tokens * 1.25
    assert graphs.shape(4097, 1, 0) is None
    assert token_buckets(4096)[-1] == 4096
    assert token_buckets(5000)[-1] == 5120
    # Beside the prompt of a lone sequence nobody decodes.
    assert row_buckets(max_num_seqs)[-1] == (max_num_seqs if max_num_seqs > 1 else 0)


@pytest.mark.parametrize("max_num_seqs", [1, 100, 512])
def test_the_largest_graph_comes_first(loaded: LoadedModel, max_num_seqs: int) -> None:
    """What is captured first has memory for all that may follow; short prompts are next."""
    graphs = graphs_of(loaded, max_num_seqs, 2048)
    largest, *lone = graphs.shapes_to_prepare(256)
    assert (largest.num_tokens, largest.num_rows) == (2048, row_buckets(max_num_seqs)[-1])
    assert [shape.num_tokens for shape in lone] == token_buckets(256)
    assert {shape.num_rows for shape in lone} == {0}


def test_few_long_prompts_have_graphs_of_their_own(loaded: LoadedModel) -> None:
    """What attends prompts is chosen by their tokens on average: graphs of either are prepared."""
    graphs = graphs_of(loaded, 16, 8192)
    assert [graphs.shape(8000, seqs, 0) for seqs in (1, 8)] == [(8192, 8, 0)] * 2
    assert graphs.shape(8000, 9, 0) == (8192, 256, 0)
    assert graphs.shape(1000, 1, 0) == (1024, 1, 0)
    assert graphs.shape(800, 1, 0) == (896, 64, 0)
    shapes = {*graphs.shapes_to_prepare(256), *graphs.other_shapes(256)}
    assert shapes >= {(8192, 8, 0), (8192, 256, 0), (1024, 1, 0), (1024, 72, 0), (896, 64, 0)}
    assert max(shapes, key=sum) == graphs.shapes_to_prepare(256)[0]


def test_preparing_writes_to_scratch_alone(loaded: LoadedModel) -> None:
    """A pass of padding alone leaves every page but the scratch page as it was."""
    graphs = graphs_of(loaded, 4, 64)
    graphs._kv.k[0][1:] = 7.0
    shape = graphs.shape(16, 1, 0)
    assert shape is not None
    graphs.prepare(shape)
    assert (shape, False) in graphs._passes
    assert (graphs._kv.k[0][1:] == 7.0).all()
    assert graphs._kv.k[0][0].any()


@pytest.mark.parametrize("kind", ["outputs", "blocks"])
def test_passes_over_fp8_are_replayed_longer(loaded: LoadedModel, kind: str) -> None:
    """Their products are over sooner, whatever has a scale: a host is the slower one for longer."""
    linears = list(loaded.model.tensors.layers[0].linears())  # type: ignore[attr-defined]
    before, plain = [linear.weight for linear in linears], replayed_tokens(loaded.model)
    try:
        for linear in linears:
            values = torch.empty(linear.weight.shape, dtype=torch.float8_e4m3fn, device="meta")
            scales = torch.empty(1, device="meta")
            linear.weight = (
                Fp8Weight(values, scales, torch.bfloat16)
                if kind == "outputs"
                else Fp8BlockWeight(values, scales, 128, 128, torch.bfloat16)
            )
        assert replayed_tokens(loaded.model) > 2 * plain
    finally:
        for linear, weight in zip(linears, before, strict=True):
            linear.weight = weight


def test_large_models_are_launched_as_before(loaded: LoadedModel) -> None:
    """A graph pays for few tokens of a wide model, for none that transformers' code computes."""
    layer = loaded.model.tensors.layers[0]  # type: ignore[attr-defined]
    assert replayed_tokens(loaded.model) > 4096
    before = layer.mlp.down.weight
    try:
        layer.mlp.down.weight = PlainWeight(torch.empty(200_000, 1000, device="meta"))
        assert 0 < replayed_tokens(loaded.model) < 1000
        assert graphs_of(loaded, 4, 8192).shape(1000, 1, 0) is None
    finally:
        layer.mlp.down.weight = before
    other: Any = object()
    assert replayed_tokens(other) == 0


def test_pass_reads_nothing_that_an_earlier_one_has_left(loaded: LoadedModel) -> None:
    """What is filled in over a pass of more prompts and rows is what is filled in over zeros."""
    graphs = graphs_of(loaded, 8, 4096)
    shape = PassShape(64, 8, 8)

    def sequence(row: int, num_tokens: int) -> Sequence:
        prompt = tuple(range(row, row + num_tokens))
        seq = Sequence(Request(row, prompt, SamplingParams()), 0, row, ())
        seq.row, seq.num_computed = row, num_tokens
        return seq

    many = [sequence(row, 9) for row in range(1, 6)]
    graphs._send(shape, [PrefillChunk(seq, 2, 9, samples=True) for seq in many], many)
    few = sequence(6, 12)
    graphs._send(shape, [PrefillChunk(few, 0, 12, samples=True)], [few])
    found = graphs._staged[: sum(shape.parts())].tolist()
    graphs._staged.zero_()
    graphs._send(shape, [PrefillChunk(few, 0, 12, samples=True)], [few])
    assert graphs._staged[: sum(shape.parts())].tolist() == found
    ids, positions, owners, table_rows, lens, borders = torch.split(
        torch.tensor(found), shape.parts()
    )
    nobody = graphs._rows.padding_row
    assert ids.tolist() == [*range(6, 18), *[0] * 52]
    assert positions.tolist() == [*range(12), *[0] * 52, 11, *[0] * 7]
    assert owners.tolist() == [*[6] * 12, *[nobody] * 52, 6, *[nobody] * 7]
    assert table_rows.tolist() == [6, *[nobody] * 7, 6, *[nobody] * 7]
    assert lens.tolist() == [12, *[0] * 7, 12, *[0] * 7]
    assert borders.tolist() == [0, *[12] * 8, *range(65, 73)]
