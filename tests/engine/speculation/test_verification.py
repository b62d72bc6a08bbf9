"""Drafted tokens change nothing but how many tokens a step brings."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.scheduler_bench import Optimist
from models.scripted_drafts import ScriptedSpeculation
from models.triton_model import ON_GPU, TINY_SIZES, load_on_triton
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine.attention import native_attention
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.execution.drafting import Drafting
from tokenbus.engine.types import FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.scheduling.prefix_grouping import SharedRun

    Run = Callable[..., dict[tuple[int, int], Any]]

VOCAB_SIZE = 320
DRAWN = SamplingParams(max_tokens=30, temperature=1.0, seed=3)
ASKED = {
    "greedy": replace(DRAWN, temperature=0.0),
    "drawn": DRAWN,
    "filtered": replace(DRAWN, top_p=0.9, top_k=40, min_p=0.02),
    "penalised": replace(
        DRAWN, repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=0.4
    ),
    "greedy-penalised": replace(DRAWN, temperature=0.0, frequency_penalty=1.5),
    "biased": replace(DRAWN, logit_bias={5: 4.0, 9: -3.0}, top_p=0.95),
    "bad-words": replace(DRAWN, bad_words=((7,), (11, 12), (200, 5, 6))),
    "late-end": replace(DRAWN, min_tokens=9, stop_token_ids=tuple(range(0, 320, 9))),
    "stopped": replace(DRAWN, stop_token_ids=tuple(range(0, 320, 7))),
    "choices": replace(DRAWN, n=3, presence_penalty=0.5),
    "scored": replace(DRAWN, n=2, logprobs=4, top_p=0.9),
    "prompt-scored": replace(DRAWN, prompt_logprobs=2, logprobs=0),
    "one": replace(DRAWN, max_tokens=1),
    "two": replace(DRAWN, max_tokens=2),
    "none": replace(DRAWN, max_tokens=0),
}


def requests_of(prompts: list[tuple[int, ...]]) -> list[Request]:
    """Ask for everything once, of prompts that differ and one that many share."""
    return [
        Request(idx, prompts[idx % len(prompts)], replace(params, seed=idx))
        for idx, params in enumerate(ASKED.values())
    ]


def texts_of(requests: list[Request], answers: dict[tuple[int, int], Any]) -> list[list[int]]:
    """Return prompt and output of each choice."""
    by_id = {request.request_id: request for request in requests}
    return [
        [*by_id[request_id].prompt_ids, *answer.token_ids]
        for (request_id, _), answer in answers.items()
    ]


def speculate(engine: Engine, texts: list[list[int]], most: int = 8) -> ScriptedSpeculation:
    """Let an engine draft from known texts."""
    speculation = ScriptedSpeculation(texts, most=most, vocab_size=VOCAB_SIZE)
    engine._drafting = Drafting(speculation, engine._constrained)
    return speculation


def check_same(wanted: dict[tuple[int, int], Any], found: dict[tuple[int, int], Any]) -> None:
    """Compare all answers: tokens, ends and log-probabilities."""
    for key, answer in wanted.items():
        again = found[key]
        assert again.token_ids == answer.token_ids, key
        assert again.reason == answer.reason, key
        assert again.deltas[-1].stop_token_id == answer.deltas[-1].stop_token_id
        entries = [entry for delta in answer.deltas for entry in delta.logprobs]
        others = [entry for delta in again.deltas for entry in delta.logprobs]
        assert len(entries) == len(others)
        for entry, other in zip(entries, others, strict=True):
            assert (entry.token_id, entry.rank, entry.forced) == (
                other.token_id, other.rank, other.forced,
            )  # fmt: skip
            assert entry.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [t for t, _ in entry.top] == [t for t, _ in other.top]


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_batch_tokens": 7, "page_size": 4, "num_pages": 800},
        {"num_pages": 60, "page_size": 4},
    ],
    ids=["plain", "chunk7-page4", "tiny-pool"],
)
def test_tokens_are_those_of_the_run_without_drafts(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run, settings: dict[str, Any], ahead: bool
) -> None:
    """Whatever is asked for, with wrong drafts among the right ones, in steps of all lengths."""
    requests = requests_of(prompts)
    wanted = run(tiny.engine(), requests)
    engine = tiny.engine(**settings)
    engine._one_step_ahead = ahead
    if settings.get("num_pages") == 60:
        engine._scheduler.estimator = Optimist()
    speculation = speculate(engine, texts_of(requests, wanted))
    check_same(wanted, run(engine, requests))
    assert speculation.num_right > 100
    assert speculation.num_wrong_drafts > 10
    assert set(speculation.heard) == speculation.dropped
    if settings.get("num_pages") == 60:
        assert engine.stats().preemptions_total > 0


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
def test_run_that_goes_on_from_its_first_tokens_says_the_rest(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run, ahead: bool
) -> None:
    """A later owner drafts too: positions, penalties and entries count from what is logged."""
    params = replace(ASKED["penalised"], n=2, logprobs=1)
    whole = run(tiny.engine(), [Request(0, prompts[3], params)])
    texts = [[*prompts[3], *answer.token_ids] for answer in whole.values()]
    for cut in (1, 7, 29):
        logged = tuple(tuple(answer.token_ids[:cut]) for answer in whole.values())
        engine = tiny.engine()
        engine._one_step_ahead = ahead
        speculation = speculate(engine, texts)
        rest = run(engine, [Request(0, prompts[3], params, resumed_ids=logged)])
        for key, answer in whole.items():
            assert rest[key].token_ids == answer.token_ids[cut:]
        assert speculation.num_right or cut == 29


def test_what_a_draft_brought_is_handed_out_while_the_next_step_runs(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run
) -> None:
    """Where steps run ahead, a reader's work for the tokens of a draft keeps no device waiting."""
    request = Request(0, prompts[3], DRAWN)
    texts = texts_of([request], run(tiny.engine(), [request]))
    engine = tiny.engine()
    engine._one_step_ahead = True
    speculate(engine, texts)
    engine.add(request)
    num_handed_out = 0
    while engine.has_work:
        for delta in engine.step().deltas:
            if len(delta.token_ids) > 1 and delta.finish_reason is None:
                num_handed_out += 1
                assert engine._inflight is not None
    assert num_handed_out > 1


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
def test_aborted_sequence_leaves_nothing_of_its_draft(
    tiny: Any, prompts: list[tuple[int, ...]], ahead: bool
) -> None:
    """Ended from outside with a draft in flight: no token comes, its pages are free at once."""
    params = replace(DRAWN, n=2)
    engine = tiny.engine()
    engine._one_step_ahead = ahead
    # Whatever follows: nothing that is drafted has to be right.
    speculation = ScriptedSpeculation([], most=8, vocab_size=VOCAB_SIZE)
    speculation.plan = lambda seqs: {seq.key: [1, 2, 3, 4] for seq in seqs}  # type: ignore[method-assign]
    engine._drafting = Drafting(speculation, engine._constrained)
    engine.add(Request(0, prompts[4], params))
    while not any(seq.draft for seq in engine._requests[0]) and not speculation.num_drafted:
        engine.step()
    engine.abort(0)
    told = [delta for _ in range(3) for delta in engine.step().deltas]
    assert [(delta.token_ids, delta.finish_reason) for delta in told] == [
        ((), FinishReason.ABORTED)
    ] * 2
    assert not engine.has_work
    assert engine._drafting._views == {}
    engine.check_integrity()
    stats = engine.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1


def test_rows_of_a_draft_read_the_pages_of_their_sequence_together(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sequences with drafts: their tokens decode in a row each, and no token is another."""
    sharing = tiny.loaded.backend.sharing
    if sharing is None:
        pytest.skip("there is no C++ compiler")
    monkeypatch.setattr(native_attention, "_BREAK_EVEN_PAGES", 1)
    params = replace(DRAWN, temperature=0.0)
    requests = [Request(idx, prompts[7 + idx], params) for idx in range(2)]
    wanted = run(tiny.engine(), requests)
    assigned: list[SharedRun] = []
    assign = sharing.assign_runs

    def noted(runs: list[SharedRun]) -> None:
        assigned.extend(runs)
        assign(runs)

    monkeypatch.setattr(sharing, "assign_runs", noted)
    engine = tiny.engine()
    speculation = speculate(engine, texts_of(requests, wanted), most=15)
    check_same(wanted, run(engine, requests))
    assert speculation.num_right > 20
    assert max(len(shared.rows) for shared in assigned) > 8
    assert {shared.end_page for shared in assigned} >= {5, 7}


@pytest.mark.parametrize("what", ["pays", "plan", "report", "measured", "drop"])
def test_planner_that_raises_ends_drafting_and_nothing_else(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run, what: str
) -> None:
    """Whatever it is asked when it breaks, all answers are those without drafts."""
    requests = requests_of(prompts)
    wanted = run(tiny.engine(), requests)
    engine = tiny.engine()
    speculation: Any = speculate(engine, texts_of(requests, wanted))
    working, calls = getattr(speculation, what), []

    def breaks(*args: Any) -> Any:
        calls.append(args)
        if len(calls) > 5:
            raise RuntimeError("no more drafts")
        return working(*args)

    setattr(speculation, what, breaks)
    check_same(wanted, run(engine, requests))
    assert len(calls) == 6, "it is not asked again"
    assert engine._drafting is not None
    assert engine._drafting._views == {}


@pytest.mark.gpu
@pytest.mark.skipif(not ON_GPU, reason="needs a CUDA device")
@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "graphs"])
def test_tokens_on_a_gpu_are_those_of_the_run_without_drafts(
    prompts: list[tuple[int, ...]], run: Run, graphs: bool
) -> None:
    """Rows of drafts in graphs of their own and beside prompts, over several pages."""
    torch.manual_seed(0)
    config = LlamaConfig(**TINY_SIZES)
    loaded = load_on_triton(config, LlamaForCausalLM(config).state_dict(), max_rows=128)
    requests = requests_of(prompts)
    settings: dict[str, Any] = {"num_pages": 400, "page_size": 16, "max_num_seqs": 32}
    wanted = run(engine_for(loaded, EngineConfig("tiny", **settings)), requests)
    engine = engine_for(
        loaded, EngineConfig("tiny", speculation="auto", cuda_graphs=graphs, **settings)
    )
    speculation = speculate(engine, texts_of(requests, wanted), most=15)
    check_same(wanted, run(engine, requests))
    assert speculation.num_right > 100
    runner: Any = engine._runner
    assert not graphs or len(runner._drafts._passes) > len(runner._drafts.shapes_to_prepare())
