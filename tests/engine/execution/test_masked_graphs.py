"""Steps under grammars in graphs: they draw what launched steps draw, whoever is beside.

Where there is no GPU, what a graph would replay is computed anew, which takes the interpreter long.
"""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.replayed_runner import ReplayedRunner, need_no_device
from models.scheduler_bench import Optimist
from models.triton_model import ON_GPU, TINY_SIZES, load_on_triton
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine import build
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import FinishReason, GrammarKind, GrammarSpec, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.weights.loader import LoadedModel

TOKENIZER = build_null_tokenizer()
LETTERS = GrammarSpec(GrammarKind.REGEX, "[a-z]{40}")
DIGITS = GrammarSpec(GrammarKind.REGEX, "[0-9]{3,9}-[0-9]{3,9}")
FORM = GrammarSpec(GrammarKind.REGEX, "[0-9] of nine parts[.!] and no more[.!]")
LABEL = GrammarSpec(GrammarKind.CHOICE, json.dumps(["red", "rust", "blue and green", "blue"]))
NUM_TOKENS = 30
# A mask each of tokens 32 to 63 and 64 to 95, some of them.
MASKS = torch.eye(16, dtype=torch.int32)[1:3] * 0x0F0F0F0F
NEEDS_GPU = pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
# Free rows and masked ones, which end at different steps; each with all that a draw can be.
KINDS = (
    SamplingParams(temperature=0.9, seed=1, grammar=LETTERS),
    SamplingParams(temperature=0.9, seed=2),
    SamplingParams(temperature=1.0, seed=3, top_p=0.9, top_k=40, grammar=DIGITS),
    SamplingParams(temperature=0.0, grammar=LABEL),
    SamplingParams(temperature=0.8, seed=4, repetition_penalty=1.2, grammar=LETTERS),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.2, seed=5, min_p=0.05, logit_bias={101: 3.0}),
    SamplingParams(temperature=0.9, seed=6, grammar=FORM),
)


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """Return a tiny model of random weights in fp32 with a vocabulary of bytes and words."""
    torch.manual_seed(0)
    few = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2}
    sizes = {"vocab_size": len(TOKENIZER), **({} if ON_GPU else few)}
    config = LlamaConfig(**(TINY_SIZES | sizes))
    plain = load_on_triton(config, LlamaForCausalLM(config).state_dict(), max_rows=64)
    return replace(plain, tokenizer=TOKENIZER)


@pytest.fixture(autouse=True)
def _graphs_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    if not ON_GPU:
        need_no_device(monkeypatch)


class Run:
    """An engine with graphs or without, what it answered, and the masks of its replayed steps."""

    def __init__(self, loaded: LoadedModel, *, graphs: bool, **options: Any) -> None:
        sizes = {"num_pages": 300, "page_size": 16} | options
        config = EngineConfig("tiny", cuda_graphs=graphs, **sizes)
        with pytest.MonkeyPatch.context() as patch:
            if graphs and not ON_GPU:
                patch.setattr(build, "Runner", ReplayedRunner)
            self.engine = engine_for(loaded, config)
        self.tokens: dict[int, list[int]] = {}
        self.scores: dict[int, list[float]] = {}
        self.ends: dict[int, Any] = {}
        self.replays: list[list[int]] = []
        self.forced: list[int] = []
        if graphs:
            self._note(self.engine._runner)

    def _note(self, runner: Any) -> None:
        replay, run = runner._replay, runner._drafts.run

        def replayed(seqs: Any, rows: Any, numbers: list[int], plan: Any) -> Any:
            self.replays.append(numbers)
            return replay(seqs, rows, numbers, plan)

        def run_few(chunks: Any, seqs: Any) -> Any:
            found = run(chunks, seqs)
            if found is not None:
                self.forced += [chunk.num_tokens for chunk in chunks]
            return found

        runner._replay, runner._drafts.run = replayed, run_few

    def answer(self, requests: Sequence[Request]) -> Run:
        """Answer requests to their ends, and nothing after them."""
        try:
            return self.try_out(requests)
        finally:
            self.engine.close()

    def try_out(self, requests: Sequence[Request]) -> Run:
        """Answer requests to their ends; afterwards their grammars need not be compiled."""
        for request in requests:
            self.tokens[request.request_id], self.scores[request.request_id] = [], []
            self.engine.add(request)
        while self.engine.has_work:
            for delta in self.engine.step().deltas:
                self.tokens[delta.request_id] += delta.token_ids
                for score in delta.logprobs:
                    values = (score.logprob, *(item[1] for item in score.top))
                    self.scores[delta.request_id] += values
                if delta.finish_reason is not None:
                    self.ends[delta.request_id] = delta
            self.engine.check_integrity()
        return self


def some_requests(
    number: int, kinds: Sequence[SamplingParams], logprobs: int | None = None
) -> list[Request]:
    """Return requests of several lengths, one of each kind in turn."""
    source = random.Random(3)
    prompts = [TOKENIZER.encode("red? " * source.randint(1, 5)) for _ in range(number)]
    return [
        Request(
            idx,
            tuple(prompt),
            replace(kinds[idx % len(kinds)], max_tokens=NUM_TOKENS + idx % 5, logprobs=logprobs),
        )
        for idx, prompt in enumerate(prompts)
    ]


def knowing(run: Run) -> Run:
    """Let a run know its grammars, so that masked rows are there as soon as free ones."""
    first = replace(KINDS[0], max_tokens=1)
    kinds = [replace(first, grammar=params.grammar) for params in KINDS if params.grammar]
    run.try_out([Request(100 + idx, (3,), params) for idx, params in enumerate(kinds)])
    run.replays.clear()
    return run


def scripted(run: Run, *, is_broken: bool) -> Run:
    """Let masks of two rows come and go; once one of the second may be too short."""

    def masks(plan: Any) -> dict[int, torch.Tensor]:
        found = {}
        for seq in plan.sampled():
            number = seq.request.request_id
            if number < len(MASKS) and (seq.num_computed + number) % 2:
                is_short = is_broken and number and seq in plan.decode
                found[seq.row] = MASKS[number][: -1 if is_short else None]
        return found

    run.engine._constrained.masks = masks  # type: ignore[method-assign]
    return run


@pytest.mark.slow
def test_masks_come_go_and_fail_alone(loaded: LoadedModel) -> None:
    """Every draw is under its own mask of that step or none; one that does not fit ends its row."""
    requests = [
        Request(
            idx, (3 + idx, 9), SamplingParams(max_tokens=(3, 3, 6)[idx], temperature=0.9, seed=idx)
        )
        for idx in range(3)
    ]
    launched, replayed, broken = (
        scripted(Run(loaded, graphs=graphs, max_num_seqs=4), is_broken=is_broken).answer(requests)
        for graphs, is_broken in ((False, False), (True, False), (True, True))
    )
    assert replayed.tokens == launched.tokens
    assert any(map(any, replayed.replays))
    assert not all(map(any, replayed.replays))
    assert broken.ends[1].finish_reason is FinishReason.FAILED
    assert "its mask was sent" in broken.ends[1].error.message
    assert [broken.tokens[idx] for idx in (0, 2)] == [launched.tokens[idx] for idx in (0, 2)]


@pytest.mark.slow
def test_forced_tokens_are_rows_of_their_sequence(loaded: LoadedModel) -> None:
    """They go through passes of few rows, alone and beside a sequence that decodes."""
    requests = [
        Request(0, (3, 9), SamplingParams(max_tokens=40, temperature=0.9, seed=1, grammar=FORM)),
        Request(1, (4, 9, 8), SamplingParams(max_tokens=9, temperature=0.9, seed=2)),
    ]
    launched, replayed = (
        Run(loaded, graphs=graphs, max_num_seqs=4).answer(requests) for graphs in (False, True)
    )
    assert replayed.tokens == launched.tokens
    assert " of nine parts" in str(TOKENIZER.decode(replayed.tokens[0]))
    assert len(replayed.forced) == 2
    assert min(replayed.forced) > 3


@pytest.mark.gpu
@NEEDS_GPU
@pytest.mark.parametrize("logprobs", [None, 3])
def test_replayed_steps_draw_what_launched_ones_do(
    loaded: LoadedModel, logprobs: int | None
) -> None:
    """Batches of masked and free rows, smaller as rows leave: the same tokens and scores."""
    requests = some_requests(40, KINDS, logprobs)
    launched, replayed = (
        knowing(Run(loaded, graphs=graphs, max_num_seqs=64)).answer(requests)
        for graphs in (False, True)
    )
    assert replayed.tokens == launched.tokens
    for idx, values in replayed.scores.items():
        assert values == pytest.approx(launched.scores[idx], abs=1e-4)
    # Steps of masked rows alone, of free rows beside them, and of free rows alone: all replayed.
    is_masked = [{number > 0 for number in numbers} for numbers in replayed.replays]
    assert {True, False} in is_masked
    assert {False} in is_masked
    assert len({len(numbers) > 16 for numbers in replayed.replays}) == 2


@pytest.mark.gpu
@NEEDS_GPU
def test_preempted_rows_go_on_under_their_grammars(loaded: LoadedModel) -> None:
    """Rows that lost their pages, and those that took their rows, draw what they would have."""
    requests = some_requests(12, KINDS)
    whole = Run(loaded, graphs=False, max_num_seqs=16).answer(requests)
    # Grammars that are known come at once, and one token expected per output over-admits.
    tight = knowing(Run(loaded, graphs=True, max_num_seqs=16, num_pages=16))
    tight.engine._scheduler.estimator = Optimist()
    tokens = tight.answer(requests).tokens
    assert {number: tokens[number] for number in whole.tokens} == whole.tokens
    assert tight.engine.stats().preemptions_total
    assert any(map(any, tight.replays))


@pytest.mark.gpu
@NEEDS_GPU
def test_masks_find_their_graphs_captured(loaded: LoadedModel) -> None:
    """Masks ride in the graphs of ruled draws, which the start has captured for every bucket."""
    run = Run(loaded, graphs=True, max_num_seqs=64)
    runner: Any = run.engine._runner
    before = set(runner._graphs)
    run.answer(some_requests(40, KINDS))
    assert any(map(any, run.replays))
    assert set(runner._graphs) == before
