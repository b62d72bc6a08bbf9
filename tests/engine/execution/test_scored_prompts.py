"""Logprobs of prompts: one entry per id, also where the model computes a part again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.scheduler_bench import Optimist
from models.tiny_model import TinyModel

from tokenbus.engine import LLM
from tokenbus.engine.types import FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from tokenbus.engine.scheduling.plan import StepPlan
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.types import TokenLogprobs

PROMPT = "where is my parcel, and when will it arrive?"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Save a tiny model."""
    return TinyModel(tmp_path_factory.mktemp("tiny"))


def made(tiny: TinyModel, **settings: Any) -> LLM:
    """Build an engine around it."""
    return LLM(tiny.folder, dtype="float32", device="cpu", num_threads=1, **settings)


def told(llm: LLM, requests: list[Request]) -> dict[tuple[int, int], list[Any]]:
    """Run requests; return what was told of each choice's prompt, in order."""
    found: dict[tuple[int, int], list[Any]] = {}
    for item in requests:
        llm.engine.add(item)
    while llm.engine.has_work:
        for delta in llm.engine.step().deltas:
            said = found.setdefault((delta.request_id, delta.choice), [])
            if delta.prompt_logprobs is not None:
                said.append(delta.prompt_logprobs)
    return found


def check(
    tiny: TinyModel, prompt: str, ids: list[int], entries: tuple[TokenLogprobs | None, ...]
) -> None:
    """Compare entries with transformers: none for the first id, one for each other."""
    assert entries[0] is None
    assert [entry.token_id for entry in entries[1:] if entry] == ids[1:]
    given = [entry.logprob for entry in entries[1:] if entry]
    assert given == pytest.approx(tiny.prompt_logprobs(prompt).tolist(), abs=1e-4)


@pytest.mark.parametrize("ahead", [False, True], ids=["in-step", "one-ahead"])
def test_preempted_prompts_have_one_entry_per_id(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch, ahead: bool
) -> None:
    """Also of those that are preempted amid their prompt, and behind it."""
    llm = made(tiny, num_pages=60, page_size=2, max_batch_tokens=6)
    llm.engine._one_step_ahead = ahead
    # Expecting one token per output over-admits, so that pages run out.
    llm.engine._scheduler.estimator = Optimist()
    amid, behind = _watch_preemptions(llm, monkeypatch)
    prompts = [(f"{number} go" if number % 4 else f"{number} {PROMPT}") for number in range(12)]
    encoded = [list(llm.tokenizer.encode(prompt)) for prompt in prompts]
    requests = []
    for idx, ids in enumerate(encoded):
        params = SamplingParams(max_tokens=50, temperature=0.0, prompt_logprobs=1)
        requests.append(Request(idx, tuple(ids), params, priority=0 if idx % 4 else 2))
    found = told(llm, requests)
    for idx, (prompt, ids) in enumerate(zip(prompts, encoded, strict=True)):
        [entries] = found[idx, 0]
        check(tiny, prompt, ids, entries)
    assert amid
    assert behind
    llm.close()


def _watch_preemptions(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> tuple[list[Sequence], list[Sequence]]:
    """Note who is preempted with a part of its prompt computed, and who with all of it."""
    amid: list[Sequence] = []
    behind: list[Sequence] = []
    preempt = llm.engine._scheduler._preempt

    def noted(seq: Sequence, plan: StepPlan) -> None:
        if seq.num_computed:
            (amid if seq.num_computed < seq.num_prompt else behind).append(seq)
        preempt(seq, plan)

    monkeypatch.setattr(llm.engine._scheduler, "_preempt", noted)
    return amid, behind


def test_a_choice_that_runs_brings_them_where_the_first_is_done(tiny: TinyModel) -> None:
    """A later owner does not run the choices that ended, and still has all to tell."""
    llm = made(tiny, num_pages=60)
    ids = list(llm.tokenizer.encode(PROMPT))
    params = SamplingParams(max_tokens=6, n=3, seed=1, prompt_logprobs=0)
    resumed = Request(0, tuple(ids), params, resumed_ids=((1,) * 6, (5,), ()), done_choices=(0,))
    found = told(llm, [resumed])
    [entries] = found[0, 1]
    check(tiny, PROMPT, ids, entries)
    assert found[0, 2] == []
    llm.close()


def test_prompt_of_one_id_has_one_entry(tiny: TinyModel) -> None:
    """Nothing comes before it, which is an answer too."""
    llm = made(tiny, num_pages=60)
    params = SamplingParams(max_tokens=2, prompt_logprobs=2)
    assert told(llm, [Request(0, (7,), params)]) == {(0, 0): [(None,)]}
    llm.close()


def test_prompt_that_was_not_computed_has_no_entries(tiny: TinyModel) -> None:
    """A request that ends amid its prompt tells no part of it."""
    llm = made(tiny, num_pages=60, max_batch_tokens=9)
    params = SamplingParams(max_tokens=2, prompt_logprobs=2)
    llm.engine.add(Request(0, tuple(llm.tokenizer.encode(PROMPT)), params))
    llm.engine.step()
    llm.engine.abort(0)
    [delta] = llm.engine.step().deltas
    assert (delta.finish_reason, delta.prompt_logprobs) == (FinishReason.ABORTED, None)
    llm.close()
