"""Sampling defaults of a checkpoint at jobs: what is left out, what is given, what is stored."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.engine.types import EngineLimits, Request, SamplingDefaults, SamplingParams
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.new_job import new_job
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.messages.engine import COMMANDS, AddRequest
from tokenbus.worker.process.frames import FrameReader

DEFAULTS = SamplingDefaults(0.6, 20, 0.95, 0.0, 1.1)
LIMITS = EngineLimits("m", 10_000, 16, 256, 1024, (), 512, DEFAULTS)


@pytest.fixture(scope="module")
def preparer() -> PromptPreparer:
    """Prepare for a model with defaults."""
    return PromptPreparer(build_null_tokenizer(), LIMITS)


def _through_queue(**fields: Any) -> bytes:
    return new_job(JobRequest.build(prompt="a", **fields)).request.encode()


def test_job_gets_the_checkpoints_number_where_it_gives_none(preparer: PromptPreparer) -> None:
    """Left out is the checkpoint's, given is given: stored by a client, or raw in the inbox."""
    given: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "repetition_penalty": 1.0}
    raw = b'{"v":1,"prompt":"a","temperature":1.0,"top_k":0,"repetition_penalty":1}'
    for body in (_through_queue(**given), raw):
        job = preparer.tokenise(preparer.read(body))
        found = job.params.temperature, job.params.top_k, job.params.repetition_penalty
        assert found == (1.0, 0, 1.0)
        assert (job.params.top_p, job.sampling) == (0.95, {"top_p": 0.95})
    for body in (_through_queue(), b'{"v":1,"prompt":"a"}'):
        job = preparer.tokenise(preparer.read(body))
        numbers = (0.6, 20, 0.95, 0.0, 1.1)
        params = job.params
        assert numbers == (
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            params.repetition_penalty,
        )
        # What was the same anyway is not told.
        assert job.sampling == {
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "repetition_penalty": 1.1,
        }


def test_default_that_was_given_is_stored_and_other_defaults_are_not() -> None:
    """The stored JSON keeps what a request gave where the checkpoint may say otherwise."""
    whole = JobRequest.build(prompt="a", min_p=0.0, temperature=1.0, top_p=0.5, n=1, logprobs=None)
    assert whole.dump() == '{"v":2,"prompt":"a","top_p":0.5,"min_p":0.0,"temperature":1.0}'
    assert JobRequest.parse(whole.dump()).dump() == whole.dump()
    assert JobRequest.build(prompt="a", max_tokens=128).dump() == '{"v":2,"prompt":"a"}'


def test_finish_tells_the_checkpoints_numbers() -> None:
    """The end of a job carries what the checkpoint changed, and nothing where it did not."""
    finish = Finish("stop", sampling={"temperature": 0.6, "top_k": 20})
    assert Finish.parse(finish.dump()) == finish
    assert "sampling" not in Finish("stop").dump()


def test_open_numbers_travel_as_numbers() -> None:
    """A request with fields that nobody chose crosses the border of the engine's process."""
    sent = AddRequest(Request(1, (2,), SamplingParams()))
    (body,) = FrameReader().feed(COMMANDS.encode(sent))
    received = COMMANDS.decode(body)
    assert isinstance(received, AddRequest)
    assert received.request.params == sent.request.params
