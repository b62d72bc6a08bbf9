"""Ranks answer as one: the same tokens, the same bits on all, whatever requests ask for."""

from __future__ import annotations

from dataclasses import replace
from threading import Event
from typing import TYPE_CHECKING, Any

import pytest
from models.architectures import DECODER, tiny_sizes
from models.engine_of_ranks import GREEDY, answers, asked, engine, prompts, saved
from models.rank_threads import follow_in_threads
from models.scheduler_bench import Optimist
from models.scripted_drafts import ScriptedSpeculation
from models.tiny_model import TinyModel

from tokenbus.engine.errors import EngineError, RequestRejected
from tokenbus.engine.execution.drafting import Drafting
from tokenbus.engine.models.families import decoder_config
from tokenbus.engine.parallel import watch
from tokenbus.engine.parallel.following import FollowingGroup
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import GrammarKind, GrammarSpec, Request, TokenDelta

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from tokenbus.engine.engine import Engine

FAMILIES = (
    "llama-mha-bias-tied",
    "mistral-window",
    "qwen2-mixed-windows",
    "qwen3",
    "gemma2",
    "phi3-partial-rotary",
    "granite",
    "smollm3-nope",
    "qwen3_moe",
    "qwen2_moe",
    "granitemoeshared",
    "olmo2",
    "olmoe",
)


@pytest.fixture
def logits(monkeypatch: pytest.MonkeyPatch) -> dict[int, list[Tensor]]:
    """Start followers as threads; the logits that each rank computed."""
    return follow_in_threads(monkeypatch)


def assert_bit_equal(logits: dict[int, list[Tensor]], size: int) -> None:
    """Check that all ranks computed the same logits, bit for bit, and as often."""
    assert sorted(logits) == list(range(size))
    for rank in range(1, size):
        assert len(logits[rank]) == len(logits[0])
        pairs = zip(logits[rank], logits[0], strict=True)
        assert all(own.equal(first) for own, first in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", FAMILIES)
def test_ranks_answer_like_one(
    name: str, size: int, tmp_path: Path, logits: dict[int, list[Tensor]]
) -> None:
    """Greedy tokens are those of one rank, and logits the same bits on all ranks."""
    model = saved(tmp_path, name)
    expected = answers(engine(model), asked())
    logits.clear()
    assert answers(engine(model, size), asked()) == expected
    assert_bit_equal(logits, size)


def told(built: Engine, requests: list[Request]) -> dict[int, list[TokenDelta]]:
    """Answer requests and close the engine; return all that was told of each."""
    found: dict[int, list[TokenDelta]] = {request.request_id: [] for request in requests}
    for request in requests:
        built.add(request)
    while built.has_work:
        for delta in built.step().deltas:
            assert delta.error is None, delta.error
            found[delta.request_id].append(delta)
    built.close()
    return found


@pytest.mark.slow
def test_all_that_requests_ask_for_works_on_ranks(
    tmp_path: Path, logits: dict[int, list[Tensor]]
) -> None:
    """Log-probabilities, choices, rules, grammars and draws by chance are those of one rank."""
    TinyModel(tmp_path)
    wanted = [
        replace(GREEDY, logprobs=3, prompt_logprobs=2),
        replace(GREEDY, n=3, temperature=0.8, top_p=0.9, seed=7),
        replace(GREEDY, presence_penalty=0.5, bad_words=((5,),), min_tokens=3, logit_bias={9: 2.0}),
        replace(GREEDY, grammar=GrammarSpec(GrammarKind.REGEX, "(ab|c[0-9]+d)+"), logprobs=0),
    ]
    requests = [
        Request(number, ids, params)
        for number, (ids, params) in enumerate(zip(prompts(), wanted, strict=True))
    ]
    expected = told(engine(str(tmp_path)), requests)
    logits.clear()
    found = told(engine(str(tmp_path), 2), requests)
    assert_bit_equal(logits, 2)
    for request in requests:
        pairs = zip(found[request.request_id], expected[request.request_id], strict=True)
        for own, one in pairs:
            assert (own.choice, own.token_ids) == (one.choice, one.token_ids)
            scored = zip(own.logprobs, one.logprobs, strict=True)
            assert all(abs(a.logprob - b.logprob) < 1e-3 for a, b in scored)
            for a, b in zip(own.prompt_logprobs or (), one.prompt_logprobs or (), strict=True):
                assert (a is None) == (b is None)
                assert a is None or b is None or abs(a.logprob - b.logprob) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("is_ahead", [False, True])
def test_preempted_rows_are_followed(
    is_ahead: bool, tmp_path: Path, logits: dict[int, list[Tensor]]
) -> None:
    """Sequences that lose their pages and come back, on other rows, answer as on one rank."""
    model = saved(tmp_path, "qwen3")
    params = replace(GREEDY, max_tokens=60)
    requests = [Request(number, tuple(range(3 + number, 40)), params) for number in range(6)]
    expected = answers(engine(model), requests)
    logits.clear()
    built = engine(model, 2, num_pages=14)
    # Expecting one token per output over-admits, so that pages run out.
    built._scheduler.estimator = Optimist()
    built._one_step_ahead = is_ahead
    assert answers(built, requests) == expected
    assert built.stats().preemptions_total > 0
    assert_bit_equal(logits, 2)


@pytest.mark.parametrize("is_ahead", [pytest.param(False, marks=pytest.mark.slow), True])
def test_drafts_are_verified_on_all_ranks(
    is_ahead: bool, tmp_path: Path, logits: dict[int, list[Tensor]]
) -> None:
    """Right and wrong drafts change no token of any request, and all ranks compute them."""
    TinyModel(tmp_path)
    long = replace(GREEDY, max_tokens=20)
    wanted = [
        long,
        replace(long, n=2, temperature=0.8, top_p=0.9, seed=7, logprobs=2),
        replace(long, presence_penalty=0.5, frequency_penalty=0.3),
        replace(long, grammar=GrammarSpec(GrammarKind.REGEX, "(ab|c[0-9]+d)+"), logprobs=0),
    ]
    requests = [
        Request(number, ids, params)
        for number, (ids, params) in enumerate(zip(prompts(), wanted, strict=True))
    ]
    expected = answers(engine(str(tmp_path)), requests)
    texts = [[*prompts()[number], *token_ids] for (number, _), token_ids in expected.items()]
    logits.clear()
    built = engine(str(tmp_path), 2)
    built._one_step_ahead = is_ahead
    script = ScriptedSpeculation(texts, most=5, vocab_size=300)
    built._drafting = Drafting(script, built._constrained)
    assert answers(built, requests) == expected
    assert script.num_right > 25
    assert script.num_wrong_drafts > 3
    assert_bit_equal(logits, 2)


@pytest.mark.parametrize(
    ("name", "size", "refusal"),
    [
        ("qwen3", 3, "3 ranks cannot share 2 heads of keys and values"),
        ("llama-mha-bias-tied", 5, "5 ranks cannot share 8 heads of keys and values"),
        ("qwen3", 16, "16 ranks cannot share 8 query heads"),
        ("qwen2_moe", 8, "8 ranks cannot share 36 features of an expert"),
    ],
)
def test_numbers_that_do_not_divide_are_refused(name: str, size: int, refusal: str) -> None:
    """A number of ranks that does not divide the model is refused by the setting's name."""
    family, fields = DECODER[name]
    shape = decoder_config(family(**(tiny_sizes() | fields | {"moe_intermediate_size": 36})))
    assert shape is not None
    with pytest.raises(RequestRejected, match=f"^tensor_parallel: {refusal}"):
        shape.of_rank(size)


def test_start_ends_with_a_refusal(tmp_path: Path, logits: dict[int, list[Tensor]]) -> None:
    """What the model cannot be divided by ends the start of all ranks."""
    with pytest.raises(RequestRejected, match=r"^tensor_parallel: 3 ranks"):
        engine(saved(tmp_path, "qwen3"), 3)
    assert not logits


def test_fault_of_one_sequence_leaves_ranks_in_step(
    tmp_path: Path, logits: dict[int, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What scoring or drawing for one sequence raises on rank 0 ends that one alone."""
    model = saved(tmp_path, "qwen3")
    params = replace(GREEDY, prompt_logprobs=0)
    built = engine(model, 2)
    plain = SamplingState.score

    def failing(state: Any, logits: Tensor, token_ids: Tensor, num_top: int) -> Any:
        if type(state) is SamplingState and token_ids[0] == 99:
            raise ValueError("planted")
        return plain(state, logits, token_ids, num_top)

    monkeypatch.setattr(SamplingState, "score", failing)
    good, bad = Request(0, (3, 4, 5), params), Request(1, (7, 99, 8), params)
    for request in (good, bad):
        built.add(request)
    deltas: list[TokenDelta] = []
    while built.has_work:
        deltas += built.step().deltas
    built.close()
    errors = {delta.request_id for delta in deltas if delta.error is not None}
    assert errors == {1}
    assert_bit_equal(logits, 2)


def test_rank_that_hangs_while_it_loads_is_not_waited_for(
    tmp_path: Path, logits: dict[int, list[Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A follower whose beat stops ends the start, long before the time that a start may take."""
    goes_on = Event()
    monkeypatch.setattr(watch, "SILENT_S", 0.5)
    monkeypatch.setattr(FollowingGroup, "_beat", lambda group: group._shared.beat())
    monkeypatch.setattr(FollowingGroup, "loaded", lambda _: goes_on.wait())
    with pytest.raises(EngineError, match="rank 1 has not answered for 4 s at its start"):
        engine(saved(tmp_path, "qwen3"), 2)
    goes_on.set()
    assert not logits
