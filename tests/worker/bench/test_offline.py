"""The offline run: prompts and grammars are those of the queue, and all jobs run to their ends."""

from __future__ import annotations

from typing import Any

import pytest

from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_engine import NullEngine
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.worker.bench.load.workload import Workload
from tokenbus.worker.bench.offline import run_offline
from tokenbus.worker.bench.options import BenchOptions
from tokenbus.worker.jobs.prompt import PromptPreparer
from tokenbus.worker.tokenizer import load_tokenizer

NUM_JOBS = 5


class NotingEngine(NullEngine):
    """Keeps what it is asked for."""

    def __init__(self) -> None:
        super().__init__(NullConfig())
        self.requests: list[Any] = []

    def add(self, request: Any) -> None:
        """Note a request and queue it."""
        self.requests.append(request)
        super().add(request)


@pytest.mark.parametrize("choice", [None, 4])
@pytest.mark.parametrize("messages", [False, True])
def test_offline_engine_gets_what_a_worker_would_give_it(
    choice: int | None, messages: bool
) -> None:
    """Ids, rendered messages and grammars are those of the same job out of the queue."""
    options = BenchOptions(
        arrival="at-once", jobs=NUM_JOBS, messages=messages, choice=choice,
        prompt_tokens=(8, 20), shared_tokens=10, output_tokens=(2, 4),
    )  # fmt: skip
    engine = NotingEngine()
    num_jobs, num_tokens, _ = run_offline(engine, options)
    preparer = PromptPreparer(load_tokenizer(None, options.vocab_size), engine.limits)
    workload = Workload(options)
    jobs = [workload.job(number) for number in range(NUM_JOBS)]
    assert (num_jobs, num_tokens) == (NUM_JOBS, sum(job.max_tokens for job in jobs))
    for job, request in zip(jobs, engine.requests, strict=True):
        stored = JobRequest.build(**job.fields(options.temperature)).dump()
        prepared = preparer.tokenise(preparer.read(stored.encode()))
        assert tuple(request.prompt_ids) == tuple(prepared.prompt_ids)
        assert request.params == prepared.params
        assert (request.params.grammar is None) == (choice is None)
