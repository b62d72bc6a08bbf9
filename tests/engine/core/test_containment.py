"""What one sequence's work raises ends that sequence alone; what is nobody's ends the engine."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from tokenbus.engine.errors import DeviceFault, IntegrityError, ModelUnsound, RequestRejected
from tokenbus.engine.grammar.preparer import FailedGrammar, ReadyGrammar
from tokenbus.engine.types import (
    FaultCode,
    FinishReason,
    GrammarKind,
    GrammarSpec,
    Request,
    SamplingParams,
)

if TYPE_CHECKING:
    from torch import Tensor

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.execution.pending_step import PendingStep
    from tokenbus.engine.scheduling.sequence import Sequence

pytestmark = pytest.mark.each_value

Run = Callable[..., dict[tuple[int, int], Any]]

GOOD, BAD = 0, 1
PROMPT = tuple(range(20))
BAD_PROMPT = tuple(range(100, 140))
SURROGATE = "\ud800"


@pytest.fixture(params=[False, True], ids=["in-step", "one-ahead"])
def engine(tiny: Any, request: pytest.FixtureRequest) -> Engine:
    """Return an engine of the tiny model, which may read back one step late."""
    built: Engine = tiny.engine()
    built._one_step_ahead = request.param
    return built


@pytest.fixture
def expected(tiny: Any) -> list[int]:
    """Return what the good request answers by itself."""
    return tiny.greedy(PROMPT, 12)  # type: ignore[no-any-return]


def requests(bad: SamplingParams | None = None) -> list[Request]:
    """Return one good request and one to go wrong, of other tokens."""
    good = SamplingParams(max_tokens=12, temperature=0.0)
    return [Request(GOOD, PROMPT, good), Request(BAD, BAD_PROMPT, bad or good)]


class _Raising:
    """Stands for a method: raises when told to, else does what the method did."""

    def __init__(self, method: Any, when: Callable[..., bool], error: Exception) -> None:
        self._method, self._when, self._error = method, when, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise or pass on."""
        if self._when(*args, **kwargs):
            raise self._error
        return self._method(*args, **kwargs)


def is_bad(seq: Sequence) -> bool:
    """Tell whether a sequence belongs to the bad request."""
    return seq.request.request_id == BAD


def break_at(engine: Engine, place: str) -> None:
    """Let one piece of work for the bad sequence raise."""
    runner, error = engine._runner, ValueError(f"planted {SURROGATE}")

    def plant(owner: Any, name: str, when: Callable[..., bool]) -> None:
        setattr(owner, name, _Raising(getattr(owner, name), when, error))

    if place == "set-up":
        plant(runner.sampling, "set_row", lambda _, params, *__: params.seed == 1)
    elif place == "draw":
        plant(
            runner.sampling,
            "sample",
            lambda _, rows, *__, **___: any(
                owner is not None and is_bad(owner)
                for owner in map(runner.rows._owner.__getitem__, rows.tolist())
            ),
        )
    elif place == "delivery":
        plant(engine._scheduler, "complete", lambda seq, _: is_bad(seq) and seq.num_output >= 3)
    elif place == "end":
        plant(
            engine,
            "_emit",
            lambda seq, ids, reason, *_: is_bad(seq) and bool(ids) and reason is not None,
        )
    elif place == "prompt-scores":
        plant(runner, "_score_prompt", lambda *_: True)


@pytest.mark.parametrize("place", ["set-up", "draw", "delivery", "end", "prompt-scores"])
def test_sequence_whose_work_raises_ends_alone(
    engine: Engine, run: Run, expected: list[int], place: str
) -> None:
    """Wherever its own work raises, it ends with the words and its pages are free; nobody else."""
    scored = 0 if place == "prompt-scores" else None
    bad = SamplingParams(max_tokens=12, temperature=0.0, seed=1, prompt_logprobs=scored)
    break_at(engine, place)
    answers = run(engine, requests(bad))
    assert answers[GOOD, 0].token_ids == expected
    assert answers[BAD, 0].reason is FinishReason.FAILED
    fault = answers[BAD, 0].deltas[-1].error
    assert fault.code is FaultCode.ENGINE
    assert "ValueError" in fault.message
    fault.message.encode()


def broken_logits(engine: Engine, value: float, *, whole: bool, from_step: int) -> None:
    """Let the model's logits of the bad sequence hold `value`, in one place or in all."""
    runner = engine._runner
    sample = runner._sample
    steps = 0

    def spoiled(logits: Tensor, pending: PendingStep, masks: Any) -> None:
        nonlocal steps
        steps += 1
        for idx, seq in enumerate(pending.seqs):
            if is_bad(seq) and steps > from_step:
                logits[idx, slice(None) if whole else 7] = value
        sample(logits, pending, masks)

    runner._sample = spoiled  # type: ignore[method-assign]


@pytest.mark.parametrize("temperature", [0.0, 0.8], ids=["greedy", "sampled"])
@pytest.mark.parametrize("from_step", [0, 4], ids=["first-token", "amid"])
@pytest.mark.parametrize(
    ("value", "whole"),
    [(float("nan"), True), (float("nan"), False), (float("inf"), False), (float("-inf"), True)],
    ids=["all-nan", "one-nan", "one-inf", "all-minus-inf"],
)
def test_sequence_whose_logits_are_not_finite_ends_alone(
    engine: Engine,
    run: Run,
    expected: list[int],
    temperature: float,
    from_step: int,
    value: float,
    whole: bool,
) -> None:
    """It ends with a word, greedy or not, with logprobs or not; its neighbour answers as ever."""
    bad = SamplingParams(max_tokens=12, temperature=temperature, logprobs=3, bad_words=((1, 2),))
    bad = replace(bad, bad_words=()) if value == float("-inf") else bad
    broken_logits(engine, value, whole=whole, from_step=from_step)
    answers = run(engine, requests(bad))
    assert answers[GOOD, 0].token_ids == expected
    assert answers[BAD, 0].deltas[-1].error.code is FaultCode.NUMERICS
    assert len(answers[BAD, 0].token_ids) == from_step


def test_pages_of_broken_numbers_are_no_prefix_of_others(
    engine: Engine, run: Run, tiny: Any
) -> None:
    """What a sequence wrote whose numbers broke is nobody's prefix hit."""
    broken_logits(engine, float("nan"), whole=True, from_step=3)
    run(engine, requests())
    cached = engine.stats().cached_tokens_total
    again = Request(2, BAD_PROMPT, SamplingParams(max_tokens=12, temperature=0.0))
    assert run(engine, [again])[2, 0].token_ids == tiny.greedy(BAD_PROMPT, 12)
    assert engine.stats().cached_tokens_total == cached


def test_model_without_finite_logits_is_not_the_sequences_fault(
    engine: Engine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the model gives no number for anything, the engine ends and says so."""
    logits = engine._runner.model.logits
    monkeypatch.setattr(engine._runner.model, "logits", lambda h: logits(h) * float("nan"))
    with pytest.raises(ModelUnsound, match="finite"):
        run(engine, requests())


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (IntegrityError("page 3 is held by nobody"), IntegrityError),
        (torch.AcceleratorError("CUDA error: an illegal memory access"), DeviceFault),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceFault),
    ],
    ids=["books", "device", "device-in-words"],
)
def test_fault_of_engine_or_device_passes_every_guard(
    engine: Engine, run: Run, raised: Exception, seen: type[Exception]
) -> None:
    """What no request can cause ends the engine, by its name, though one's work brought it up."""
    sampling = engine._runner.sampling
    sampling.set_row = _Raising(sampling.set_row, lambda *_: True, raised)  # type: ignore[method-assign]
    with pytest.raises(seen):
        run(engine, requests())


def test_draw_that_raises_for_everyone_is_nobodys_fault(engine: Engine, run: Run) -> None:
    """Several sequences that all fail the same work are not to blame for it."""
    sampling = engine._runner.sampling
    sampling.sample = _Raising(sampling.sample, lambda *_, **__: True, ValueError("planted"))  # type: ignore[method-assign]
    with pytest.raises(ValueError, match="planted"):
        run(engine, requests())


class _Tokens:
    """A matcher that accepts nothing."""

    is_finished = False
    is_broken = False

    def accept(self, token_id: int) -> None:
        """Refuse any token."""
        raise RuntimeError(f"planted at {token_id}")


@pytest.mark.parametrize("place", ["compile", "late-compile", "prepare", "accept"])
def test_sequence_whose_grammar_raises_ends_alone(
    engine: Engine, run: Run, expected: list[int], place: str
) -> None:
    """Compiled, prepared or advanced: what raises there is that sequence's end."""
    late: list[Future[Any]] = []

    def prepare(seq: Sequence, spec: GrammarSpec) -> None:
        seq.grammar = spec
        future: Future[Any] = Future()
        engine._constrained._begin(seq, future)
        if place == "compile":
            future.set_exception(RuntimeError("planted"))
        elif place == "late-compile":
            late.append(future)
        elif place == "prepare":
            future.set_result(FailedGrammar("planted"))
        else:
            mask = torch.full((10,), -1, dtype=torch.int32)
            future.set_result(ReadyGrammar(_Tokens(), mask))  # type: ignore[arg-type]

    engine._constrained.prepare = prepare  # type: ignore[method-assign]
    schedule = engine._scheduler.schedule

    def fail_late(drafts: Any = None) -> Any:
        # The compile ends with an error between the look at it and the plan.
        while late:
            late.pop().set_exception(RuntimeError("planted"))
        return schedule(drafts)

    engine._scheduler.schedule = fail_late  # type: ignore[method-assign]
    grammar = GrammarSpec(GrammarKind.REGEX, "a")
    answers = run(engine, requests(SamplingParams(max_tokens=12, n=2, grammar=grammar)))
    assert answers[GOOD, 0].token_ids == expected
    for choice in (0, 1):
        fault = answers[BAD, choice].deltas[-1].error
        assert fault.code is (FaultCode.GRAMMAR)


def test_request_that_cannot_be_set_up_is_refused(
    engine: Engine, run: Run, expected: list[int]
) -> None:
    """Whatever a request's values do to its set-up, it is refused and nothing of it stays."""
    good, bad = requests()
    for broken in (
        replace(bad, prompt_ids=("a", "b")),  # type: ignore[arg-type]
        replace(bad, prompt_ids=(1 << 70,)),
        replace(bad, params=replace(bad.params, stop_token_ids=([1],))),  # type: ignore[arg-type]
        replace(bad, resumed_ids=((1 << 40,),)),
        replace(bad, resumed_ids=((), ()), params=replace(bad.params, n=5)),
    ):
        with pytest.raises(RequestRejected):
            engine.add(broken)
    assert not engine.has_work
    assert run(engine, [good])[GOOD, 0].token_ids == expected


def test_numbers_that_break_in_the_model_stay_with_their_sequence(tiny: Any, run: Run) -> None:
    """A token whose embedding is NaN breaks those who hold it, and no page they leave behind."""
    engine = tiny.engine(num_pages=13, page_size=4, max_num_seqs=4)
    embedding = tiny.loaded.model.tensors.embedding
    kept = embedding[5].clone()
    good = [Request(i, tuple(range(100 + 9 * i, 111 + 9 * i)), _GREEDY) for i in range(3)]
    expected = [tiny.greedy(request.prompt_ids, 12) for request in good]
    assert not any(5 in tokens for tokens in expected)
    bad = [
        Request(10, (*range(200, 208), 5, 7), _GREEDY),
        Request(11, (5,), replace(_GREEDY, temperature=0.9, seed=4)),
        # It asks for the token, and breaks by it amid decoding.
        Request(12, tuple(range(210, 217)), replace(_GREEDY, logit_bias={5: 100.0})),
    ]
    try:
        embedding[5] = float("nan")
        for _ in range(2):
            order = [bad[0], good[0], bad[1], good[1], bad[2], good[2]]
            answers = run(engine, order)
            for request, tokens in zip(good, expected, strict=True):
                assert answers[request.request_id, 0].token_ids == tokens
            for request in bad:
                fault = answers[request.request_id, 0].deltas[-1].error
                assert fault is not None
                assert fault.code is FaultCode.NUMERICS
            assert engine.stats().num_running == 0
    finally:
        embedding[5] = kept


_GREEDY = SamplingParams(max_tokens=12, temperature=0.0)


def test_fields_beside_the_sampling_are_checked_too(engine: Engine) -> None:
    """What scheduler and prefix cache read of a request is of its kind, or the request refused."""
    good = requests()[0]
    for broken in (
        replace(good, priority="high"),  # type: ignore[arg-type]
        replace(good, priority=True),
        replace(good, cache_salt=SURROGATE),
        replace(good, cache_salt=7),  # type: ignore[arg-type]
        replace(good, lane=["x"]),  # type: ignore[arg-type]
        replace(good, resumed_ids=((5000,),)),
        replace(good, resumed_ids=((-1,),)),
        replace(good, resumed_ids=((1,) * 12,)),
        replace(good, resumed_ids=((1,), (2,))),
        replace(good, prompt_ids=()),
    ):
        with pytest.raises(RequestRejected):
            engine.add(broken)
        assert not engine.has_work
