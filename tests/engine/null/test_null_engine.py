"""The null engine keeps the page accounts of a real one under any load."""

from __future__ import annotations

import random

import pytest

from tokenbus.engine.errors import RequestRejected, SequenceTooLong
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_engine import NullEngine, pseudo_token
from tokenbus.engine.types import FinishReason, Request, SamplingParams


@pytest.mark.parametrize("seed", range(5))
def test_pages_add_up_and_tokens_are_those_of_a_lone_run(seed: int) -> None:
    """Random adds, aborts and preemptions lose no page, no token and no order."""
    rng = random.Random(seed)
    engine = NullEngine(NullConfig(num_pages=40, page_size=4, max_num_seqs=9, max_model_len=128))
    got: dict[tuple[int, int], list[int]] = {}
    ended: dict[tuple[int, int], FinishReason] = {}
    params: dict[int, SamplingParams] = {}
    for request_id in range(60):
        chosen = SamplingParams(n=rng.choice([1, 1, 2]), max_tokens=rng.randint(1, 40), seed=seed)
        params[request_id] = chosen
        prompt = tuple(rng.randrange(1, 200) for _ in range(rng.randint(1, 20)))
        engine.add(Request(request_id, prompt, chosen, priority=rng.randint(0, 2)))
        if rng.random() < 0.1:
            engine.abort(rng.randint(0, request_id))
        for _ in range(rng.randint(0, 6)):
            _collect(engine, got, ended)
    while engine.has_work:
        _collect(engine, got, ended)
    engine.check_integrity()
    assert engine.stats().free_pages == 39
    assert engine.stats().preemptions_total > 0
    for (request_id, choice), reason in ended.items():
        tokens = got.get((request_id, choice), [])
        wanted = [pseudo_token(seed, choice, p, 256, 512) for p in range(len(tokens))]
        assert tokens == wanted
        if reason is FinishReason.LENGTH:
            assert len(tokens) == params[request_id].max_tokens
        else:
            assert reason is FinishReason.ABORTED
    assert len(ended) == sum(chosen.n for chosen in params.values())


def _collect(
    engine: NullEngine,
    got: dict[tuple[int, int], list[int]],
    ended: dict[tuple[int, int], FinishReason],
) -> None:
    for delta in engine.step().deltas:
        key = (delta.request_id, delta.choice)
        assert key not in ended
        got.setdefault(key, []).extend(delta.token_ids)
        if delta.finish_reason is not None:
            ended[key] = delta.finish_reason
    engine.check_integrity()


def test_resumed_choice_that_had_ended_is_not_run() -> None:
    """Of two choices only the one that is not done goes on, at its own position."""
    engine = NullEngine(NullConfig())
    chosen = SamplingParams(n=2, max_tokens=6, seed=3)
    done = tuple(pseudo_token(3, 0, p, 256, 512) for p in range(6))
    half = tuple(pseudo_token(3, 1, p, 256, 512) for p in range(4))
    engine.add(Request(1, (1, 2), chosen, resumed_ids=(done, half), done_choices=(0,)))
    tokens: list[int] = []
    while engine.has_work:
        for delta in engine.step().deltas:
            assert delta.choice == 1
            tokens.extend(delta.token_ids)
    assert tokens == [pseudo_token(3, 1, p, 256, 512) for p in (4, 5)]


def test_request_that_cannot_fit_is_refused_with_the_numbers() -> None:
    """What exceeds context, pool or vocabulary is refused before it runs."""
    engine = NullEngine(NullConfig(num_pages=5, page_size=4, max_model_len=64))
    with pytest.raises(SequenceTooLong, match="exceed the context of 64"):
        engine.add(Request(1, (1,) * 60, SamplingParams(max_tokens=10)))
    with pytest.raises(SequenceTooLong, match="the pool has 4"):
        engine.add(Request(1, (1,) * 10, SamplingParams(max_tokens=10)))
    with pytest.raises(RequestRejected, match="outside"):
        engine.add(Request(1, (9999,), SamplingParams(max_tokens=1)))


def test_pace_is_kept_on_the_given_clock() -> None:
    """At 50 tokens/s per sequence ten steps take a fifth of a second of the engine's clock."""
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    engine = NullEngine(NullConfig(tokens_per_s=50), clock=lambda: now, sleep=sleep)
    engine.add(Request(1, (1,), SamplingParams(max_tokens=11)))
    for _ in range(11):
        engine.step()
    assert now == pytest.approx(0.2)


@pytest.mark.parametrize(("num_seqs", "step_s"), [(2, 0.1), (8, 0.2)])
def test_pace_is_the_slower_of_the_two_rates(num_seqs: int, step_s: float) -> None:
    """A rate for all together slows a large batch down, the rate of each holds a small one."""
    now = 0.0

    def sleep(duration_s: float) -> None:
        nonlocal now
        now += duration_s

    config = NullConfig(tokens_per_s=10, total_tokens_per_s=40)
    engine = NullEngine(config, clock=lambda: now, sleep=sleep)
    for request_id in range(num_seqs):
        engine.add(Request(request_id, (1, 2), SamplingParams(max_tokens=11)))
    engine.step()
    engine.step()
    started_at = now
    for _ in range(8):
        engine.step()
    assert now - started_at == pytest.approx(8 * step_s)
