"""The engine over Triton: the same tokens as transformers, in graphs where there is a GPU."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.raw_scores import check_entries
from models.triton_model import ON_GPU, TINY_SIZES, load_on_triton
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import GrammarKind, GrammarSpec, Request, SamplingParams

if TYPE_CHECKING:
    from tokenbus.engine.weights.loader import LoadedModel

# The interpreter takes about 0.1 s per launch.
NUM_TOKENS = 40 if ON_GPU else 2
LENS = (1, 5, 63, 64, 65, 200, 300) if ON_GPU else (1, 40)


# Qwen3 is Llama with norms of queries and keys, so the quick run has it alone.
@pytest.fixture(
    params=[pytest.param(LlamaConfig, id="llama", marks=pytest.mark.slow),
            pytest.param(Qwen3Config, id="qwen3")],
)  # fmt: skip
def pair(request: pytest.FixtureRequest) -> tuple[Any, LoadedModel]:
    """Return a random model of transformers and the same weights on the Triton backend."""
    torch.manual_seed(0)
    config = request.param(**TINY_SIZES)
    auto: Any = AutoModelForCausalLM
    reference = auto.from_config(config).eval()
    loaded = load_on_triton(config, reference.state_dict(), max_rows=32)
    return reference.to(loaded.backend.device), loaded


def expected(reference: Any, prompt: tuple[int, ...], device: torch.device) -> list[int]:
    """Return what transformers generates greedily."""
    with torch.no_grad():
        out = reference.generate(
            torch.tensor([prompt], device=device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=device),
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
    return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("page_size", [pytest.param(16, marks=pytest.mark.slow), 64])
def test_greedy_tokens_equal_transformers(pair: tuple[Any, LoadedModel], page_size: int) -> None:
    """Mixed lengths, shared prefixes and more sequences than one bucket give the same tokens."""
    reference, loaded = pair
    source = random.Random(0)
    prompts = [tuple(source.randrange(320) for _ in range(length)) for length in LENS]
    prompts += [(*prompts[-1], 7, idx) for idx in range(18 if ON_GPU else 1)]
    engine = engine_for(
        loaded,
        EngineConfig("tiny", num_pages=300, page_size=page_size, max_num_seqs=32),
    )
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    for idx, prompt in enumerate(prompts):
        engine.add(Request(idx, prompt, params))
    answers: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for delta in engine.step().deltas:
            answers[delta.request_id].extend(delta.token_ids)
        engine.check_integrity()
    device = loaded.backend.device
    assert answers == [expected(reference, prompt, device) for prompt in prompts]


@pytest.mark.slow
def test_prompts_join_rows_that_read_a_shared_run(pair: tuple[Any, LoadedModel]) -> None:
    """Prompts of one unknown token or many share passes with grouped rows and change no token."""
    reference, loaded = pair
    attention: Any = loaded.backend.attention
    attention.min_saved_tokens = 0
    attention.pays = lambda rows, pages: rows > 1 and pages > 0
    shared: list[int] = []
    attention.assign_runs = _noting(attention.assign_runs, shared)
    source = random.Random(3)
    prefix = tuple(source.randrange(320) for _ in range(33))
    other = tuple(source.randrange(320) for _ in range(33))
    prompts = [other, *((*prefix, idx) for idx in range(3)), other, prefix, other[:18]]
    engine = engine_for(loaded, EngineConfig("tiny", num_pages=100, page_size=16, max_num_seqs=32))
    answers: list[list[int]] = [[] for _ in prompts]
    waiting = list(enumerate(prompts))
    params = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
    while engine.has_work or waiting:
        # One that is alone and three that share, then one more with every step.
        for _ in range(4 if len(waiting) == len(prompts) else 1):
            if waiting:
                engine.add(Request(*waiting.pop(0), params))
        for delta in engine.step().deltas:
            answers[delta.request_id].extend(delta.token_ids)
        engine.check_integrity()
    assert answers == [expected(reference, prompt, loaded.backend.device) for prompt in prompts]
    assert max(shared) >= 3


def _noting(assign: Any, sizes: list[int]) -> Any:
    """Note how many rows share the largest run of each assignment."""

    def noted(runs: Any) -> None:
        sizes.append(max((len(run.rows) for run in runs), default=0))
        assign(runs)

    return noted


@pytest.mark.slow
def test_forced_tokens_have_their_logprobs_beside_rows_that_decode() -> None:
    """Runs that a grammar forces are scored in chunks, on a GPU in graphs and one step ahead."""
    torch.manual_seed(0)
    tokenizer = build_null_tokenizer()
    sizes = {"vocab_size": len(tokenizer), "num_hidden_layers": 1}
    config = LlamaConfig(**(TINY_SIZES | sizes))
    auto: Any = AutoModelForCausalLM
    reference = auto.from_config(config).eval()
    plain = load_on_triton(config, reference.state_dict(), max_rows=8)
    engine = engine_for(
        replace(plain, tokenizer=tokenizer),
        EngineConfig("tiny", num_pages=40, max_num_seqs=8, max_batch_tokens=16),
    )
    prompt = tuple(tokenizer.encode("red?"))
    free = SamplingParams(max_tokens=4, temperature=0.0, logprobs=2)
    grammar = GrammarSpec(GrammarKind.CHOICE, json.dumps(["red", "rust"]))
    for idx, each in enumerate([None, grammar]):
        engine.add(Request(idx, prompt, replace(free, grammar=each)))
    ids: list[list[int]] = [[], []]
    entries: list[list[Any]] = [[], []]
    while engine.has_work:
        for delta in engine.step().deltas:
            assert len(delta.logprobs) == len(delta.token_ids)
            ids[delta.request_id] += delta.token_ids
            entries[delta.request_id] += delta.logprobs
        engine.check_integrity()
    for told, found in zip(ids, entries, strict=True):
        triples = [(entry.logprob, entry.rank, entry.top) for entry in found]
        check_entries(reference, prompt, told, triples, 2)
    marks = [[entry.forced for entry in found] for found in entries]
    assert marks == [[False] * 4, [True, False, *[True] * (len(ids[1]) - 2)]]
    engine.close()


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_grouped_decode_gives_the_tokens_of_ungrouped_decode(
    pair: tuple[Any, LoadedModel],
) -> None:
    """Reading shared pages once for all rows changes no greedy token in fp32."""
    _, loaded = pair
    source = random.Random(1)
    prefix = tuple(source.randrange(320) for _ in range(512))
    prompts = [(*prefix, *(source.randrange(320) for _ in range(9))) for _ in range(24)]
    answers = []
    grouping: Any = loaded.backend.attention
    grouping.min_saved_tokens = 0
    for pays in (lambda _rows, _pages: False, lambda rows, pages: rows > 1 and pages > 0):
        attention: Any = loaded.backend.attention
        attention.pays = pays
        engine = engine_for(
            loaded, EngineConfig("tiny", num_pages=200, page_size=64, max_num_seqs=32)
        )
        for idx, prompt in enumerate(prompts):
            engine.add(Request(idx, prompt, SamplingParams(max_tokens=12 + idx, temperature=0.0)))
        tokens: dict[int, list[int]] = {idx: [] for idx in range(len(prompts))}
        while engine.has_work:
            for delta in engine.step().deltas:
                tokens[delta.request_id].extend(delta.token_ids)
        answers.append(tokens)
    assert answers[0] == answers[1]


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
def test_graphs_draw_and_score_what_eager_steps_do(pair: tuple[Any, LoadedModel]) -> None:
    """Penalties, filters and log-probabilities ride in graphs, in batches that fill no bucket."""
    _, loaded = pair
    source = random.Random(2)
    prompts = [tuple(source.randrange(320) for _ in range(10 + 3 * idx)) for idx in range(11)]
    kinds = (
        SamplingParams(max_tokens=30, temperature=0.0, logprobs=3),
        SamplingParams(max_tokens=24, temperature=0.9, top_p=0.9, logprobs=0, seed=5),
        SamplingParams(max_tokens=27, temperature=0.0, repetition_penalty=1.3),
        SamplingParams(max_tokens=21, temperature=0.7, top_k=20, logit_bias={7: 2.0}, seed=9),
    )
    runs = []
    for graphs in (True, False):
        config = EngineConfig("tiny", num_pages=200, max_num_seqs=32, cuda_graphs=graphs)
        engine = engine_for(loaded, config)
        for idx, prompt in enumerate(prompts):
            engine.add(Request(idx, prompt, kinds[idx % len(kinds)]))
        tokens: dict[int, list[int]] = {idx: [] for idx in range(len(prompts))}
        scores: dict[int, list[float]] = {idx: [] for idx in range(len(prompts))}
        while engine.has_work:
            for delta in engine.step().deltas:
                tokens[delta.request_id].extend(delta.token_ids)
                for score in delta.logprobs:
                    scores[delta.request_id] += [score.logprob, *(item[1] for item in score.top)]
        runs.append((tokens, scores))
    assert runs[0][0] == runs[1][0]
    assert len(runs[0][1][0]) == 30 * 4
    for idx, values in runs[0][1].items():
        assert values == pytest.approx(runs[1][1][idx], abs=1e-4)
