"""The engine against transformers, whatever the batch, the chunks, the cache and the pool do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from models.scheduler_bench import Optimist

from tokenbus.engine.errors import RequestRejected, SequenceTooLong
from tokenbus.engine.types import FinishReason, Request, SamplingParams

Run = Callable[..., dict[tuple[int, int], Any]]


@pytest.fixture(scope="module")
def references(tiny: Any, prompts: list[tuple[int, ...]]) -> list[list[int]]:
    """Return 40 greedy tokens per prompt from transformers, varied enough to show an error."""
    answers = [tiny.greedy(prompt, 40) for prompt in prompts]
    assert min(len(set(answer)) for answer in answers) >= 10
    return answers


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 64, "page_size": 4, "num_pages": 800},
        {"page_size": 64},
        {"prefix_cache": False},
        {"num_pages": 24, "max_num_seqs": 8},
        {"num_pages": 24, "prefix_cache": False},
    ],
    ids=["plain", "chunk7", "chunk64-page4", "page64", "no-cache", "tiny-pool", "tiny-no-cache"],
)
def test_greedy_tokens_equal_transformers(
    tiny: Any,
    prompts: list[tuple[int, ...]],
    references: list[list[int]],
    greedy: SamplingParams,
    run: Run,
    settings: dict[str, Any],
    ahead: bool,
) -> None:
    """Batched with strangers, in chunks, with and without cache hits and preemption."""
    engine = tiny.engine(**settings)
    engine._one_step_ahead = ahead
    if settings.get("num_pages") == 24:
        # Expecting one token per output over-admits, so that pages run out.
        engine._scheduler.estimator = Optimist()
    answers = run(engine, [Request(i, p, greedy) for i, p in enumerate(prompts)])
    assert [answers[i, 0].token_ids for i in range(len(prompts))] == references
    if settings.get("num_pages") == 24:
        assert engine.stats().preemptions_total > 0
    if not settings:
        assert engine.stats().cached_tokens_total >= 80 + 32


def test_greedy_tokens_are_the_same_alone_and_on_a_cache_hit(
    tiny: Any,
    prompts: list[tuple[int, ...]],
    references: list[list[int]],
    greedy: SamplingParams,
    run: Run,
) -> None:
    """The second time, all full pages of a prompt come from the cache and nothing changes."""
    engine = tiny.engine()
    for attempt in range(2):
        for idx, prompt in enumerate(prompts):
            answer = run(engine, [Request(idx, prompt, greedy)])[idx, 0]
            assert answer.token_ids == references[idx], attempt
    assert engine.stats().cached_tokens_total >= sum(len(p) - 17 for p in prompts if len(p) > 17)


@pytest.mark.parametrize("settings", [{}, {"num_pages": 30, "max_num_seqs": 6}])
def test_sampled_tokens_depend_on_seed_choice_and_position_alone(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run, settings: dict[str, Any]
) -> None:
    """The same seed gives the same tokens alone, batched, preempted and resumed midway."""
    params = SamplingParams(max_tokens=30, temperature=0.8, top_p=0.9, top_k=50)
    alone = []
    for idx, prompt in enumerate(prompts):
        request = Request(0, prompt, replace(params, seed=idx))
        alone.append(run(tiny.engine(), [request])[0, 0].token_ids)
    assert len({tuple(tokens) for tokens in alone}) == len(alone)
    engine = tiny.engine(**settings)
    engine._scheduler.estimator = Optimist()
    batch = [Request(i, p, replace(params, seed=i)) for i, p in enumerate(prompts)]
    answers = run(engine, batch)
    assert [answers[i, 0].token_ids for i in range(len(prompts))] == alone
    resumed = [replace(r, resumed_ids=(tuple(alone[r.request_id][:13]),)) for r in batch]
    answers = run(tiny.engine(), resumed)
    assert [answers[i, 0].token_ids for i in range(len(prompts))] == [a[13:] for a in alone]


def test_choices_share_the_prompt_and_differ(
    tiny: Any, prompts: list[tuple[int, ...]], run: Run
) -> None:
    """Four choices compute the prompt once, differ, and equal themselves drawn alone."""
    params = SamplingParams(n=4, max_tokens=12, temperature=1.0, seed=5)
    engine = tiny.engine()
    answers = run(engine, [Request(0, prompts[7], params)])
    texts = [answers[0, choice].token_ids for choice in range(4)]
    assert len({tuple(text) for text in texts}) == 4
    assert engine.stats().cached_tokens_total == 3 * 112
    rest = Request(0, prompts[7], params, done_choices=(0, 1, 2))
    assert run(tiny.engine(), [rest])[0, 3].token_ids == texts[3]


def test_stop_ids_end_and_min_tokens_delays_them(
    tiny: Any, prompts: list[tuple[int, ...]], references: list[list[int]], run: Run
) -> None:
    """A stop id ends with its id named; before min_tokens it cannot be drawn at all."""
    stop = references[6][10]
    first = references[6].index(stop)
    params = SamplingParams(max_tokens=40, temperature=0.0, stop_token_ids=(stop,))
    answer = run(tiny.engine(), [Request(0, prompts[6], params)])[0, 0]
    assert answer.token_ids == references[6][: first + 1]
    assert answer.reason is FinishReason.STOP
    assert answer.deltas[-1].stop_token_id == stop
    later = run(tiny.engine(), [Request(0, prompts[6], replace(params, min_tokens=20))])[0, 0]
    assert stop not in later.token_ids[:19]


def test_abort_frees_pages_at_once_and_says_so(
    tiny: Any, prompts: list[tuple[int, ...]], greedy: SamplingParams
) -> None:
    """An aborted request gets one final delta; its pages are free before the next step."""
    engine = tiny.engine()
    engine.add(Request(1, prompts[7], greedy))
    engine.step()
    engine.abort(1)
    stats = engine.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    deltas = engine.step().deltas
    assert deltas[-1].finish_reason is FinishReason.ABORTED
    assert not engine.has_work
    engine.add(Request(1, prompts[7], greedy))


def test_logprobs_and_prompt_logprobs_come_with_the_tokens(
    tiny: Any, prompts: list[tuple[int, ...]], references: list[list[int]], run: Run
) -> None:
    """Log-probabilities equal transformers' within 1e-4, prompt positions included."""
    import torch

    params = SamplingParams(max_tokens=10, temperature=0.0, logprobs=3, prompt_logprobs=2)
    engine = tiny.engine(max_batch_tokens=16)
    answer = run(engine, [Request(0, prompts[6], params)])[0, 0]
    whole = torch.tensor([[*prompts[6], *references[6][:10]]])
    with torch.no_grad():
        expected = tiny.reference(whole).logits[0].float().log_softmax(-1)
    entries = [entry for delta in answer.deltas for entry in delta.logprobs]
    assert [entry.token_id for entry in entries] == references[6][:10]
    start = len(prompts[6]) - 1
    for idx, entry in enumerate(entries):
        row = expected[start + idx]
        assert entry.rank == 1
        assert entry.logprob == pytest.approx(row[entry.token_id].item(), abs=1e-4)
        top = torch.topk(row, 3)
        assert [token for token, _ in entry.top] == top.indices.tolist()
        assert [lp for _, lp in entry.top] == pytest.approx(top.values.tolist(), abs=1e-4)
    prompt = answer.deltas[0].prompt_logprobs
    assert prompt[0] is None
    assert len(prompt) == len(prompts[6])
    for idx, entry in enumerate(prompt[1:], start=1):
        assert entry.token_id == prompts[6][idx]
        wanted = expected[idx - 1, entry.token_id].item()
        assert entry.logprob == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize(
    ("request_", "error", "words"),
    [
        (Request(0, (), SamplingParams()), RequestRejected, "prompt_ids"),
        (Request(0, (9999,), SamplingParams()), RequestRejected, "9999"),
        (Request(0, (1,), SamplingParams(max_tokens=-1)), RequestRejected, "max_tokens"),
        (Request(0, (1,), SamplingParams(temperature=-1.0)), RequestRejected, "temperature"),
        (Request(0, (1,), SamplingParams(n=40)), RequestRejected, "40 choices"),
        (
            Request(0, (1,) * 900, SamplingParams(max_tokens=200)),
            SequenceTooLong,
            "900 prompt tokens and 200 to generate",
        ),
    ],
)
def test_impossible_request_is_refused_with_the_field_or_the_numbers(
    tiny: Any, request_: Request, error: type[Exception], words: str
) -> None:
    """Nothing is queued, and the message says what is wrong."""
    engine = tiny.engine()
    with pytest.raises(error, match=words):
        engine.add(request_)
    assert not engine.has_work


def test_request_larger_than_the_pool_is_refused_with_the_numbers(tiny: Any) -> None:
    """A job that could not run even alone fails at once instead of waiting for ever."""
    engine = tiny.engine(num_pages=5)
    with pytest.raises(SequenceTooLong, match="7 pages of 16 tokens, the pool has 4"):
        engine.add(Request(0, (1,) * 60, SamplingParams(max_tokens=40)))


def test_rules_leave_with_their_sequence(
    tiny: Any, prompts: list[tuple[int, ...]], references: list[list[int]], run: Run
) -> None:
    """Bias, bad words and penalties bind one sequence; the next one on its row is free of them."""
    engine = tiny.engine(max_num_seqs=1)
    plain = SamplingParams(max_tokens=10, temperature=0.0)
    wanted = references[6][:10]
    for rules in (
        {"logit_bias": {wanted[0]: -100.0}},
        {"bad_words": ((wanted[0],),)},
        {"repetition_penalty": 5.0, "presence_penalty": 2.0, "frequency_penalty": 2.0},
    ):
        bound = run(engine, [Request(0, prompts[6], replace(plain, **rules))])[0, 0]
        assert bound.token_ids != wanted
        assert run(engine, [Request(0, prompts[6], plain)])[0, 0].token_ids == wanted
