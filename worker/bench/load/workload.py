"""The workload: prompts and lengths of jobs by number, the same in every process."""

from __future__ import annotations

import json
from itertools import islice
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tokenbus.engine.bench.workloads import WORKLOADS
from tokenbus.worker.bench.load.chat_messages import ChatMessages
from tokenbus.worker.bench.load.prompts import Drawn, Fixed, Traced
from tokenbus.worker.bench.load.retail import Retail

if TYPE_CHECKING:
    from tokenbus.worker.bench.load.prompts import Prompts
    from tokenbus.worker.bench.options import BenchOptions

# Key of the random stream of a job; arrival times and prompts use others.
_JOB = 2
# Seeds name jobs in the engine's log, so they differ between the runs of one engine.
SEEDS_PER_RUN = 100_000_000


class PlannedJob(msgspec.Struct, frozen=True):
    """A job before it is submitted; the prompt is either ids or messages with tools.

    With `labels` the answer is one of them, or the beginning of one that `max_tokens` cuts.
    """

    number: int
    tenant: str
    priority: int
    seed: int
    max_tokens: int
    token_ids: list[int] | None = None
    messages: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    cache_group: str | None = None
    cache_secret: str | None = None
    labels: tuple[str, ...] = ()

    def fields(self, temperature: float) -> dict[str, Any]:
        """Return the fields of the request; a job runs to its full length, or to its label's."""
        prompt: dict[str, Any] = (
            {"token_ids": self.token_ids}
            if self.token_ids is not None
            else {"messages": self.messages, "tools": self.tools}
        )
        if self.labels:
            prompt["grammar"] = {"kind": "choice", "source": self.choice_source}
        return prompt | {
            "tenant": self.tenant,
            "priority": self.priority,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "ignore_eos": True,
            "temperature": temperature,
            "cache_group": self.cache_group,
            "cache_secret": self.cache_secret,
        }

    @property
    def choice_source(self) -> str:
        """The source of the grammar that holds the labels."""
        return json.dumps(self.labels)


class Workload:
    """All jobs of a run."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._prompts = _prompts_of(options)
        shares = np.array(options.priorities)
        self._priorities = np.cumsum(shares / shares.sum())
        self._labels = labels_of(options.choice or 0)

    @property
    def num_jobs(self) -> int | None:
        """Number of jobs there are, None for as many as one likes."""
        return self._prompts.num_jobs

    def job(self, number: int) -> PlannedJob:
        """Return a job of the run."""
        options = self._options
        source = np.random.default_rng([options.seed, _JOB, number])
        priority = int(np.searchsorted(self._priorities, source.random(), side="right"))
        prompt, num_output = self._prompts.prompt(number, source)
        return PlannedJob(
            number,
            f"tenant-{number % options.tenants}",
            min(priority, 2),
            options.run_idx * SEEDS_PER_RUN + number,
            num_output,
            # Runs of one engine must not find each other's pages.
            **({"cache_group": f"run-{options.run_idx}", "labels": self._labels} | prompt),
        )


def labels_of(count: int) -> tuple[str, ...]:
    """Return so many labels of one or two letters, which most vocabularies have as one token each.

    All are equally long, so that none is the beginning of another.
    """
    if count <= len(ascii_lowercase):
        return tuple(ascii_lowercase[:count])
    pairs = (first + second for first in ascii_lowercase for second in ascii_lowercase)
    return tuple(islice(pairs, count))


def _prompts_of(options: BenchOptions) -> Prompts:
    if options.workload == "retail":
        return Retail(options)
    if options.workload in WORKLOADS:
        prompts: Prompts = Fixed(options)
    else:
        prompts = Traced(options) if options.trace is not None else Drawn(options)
    return ChatMessages(options, prompts) if options.messages else prompts
