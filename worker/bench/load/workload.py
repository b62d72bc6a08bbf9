"""The workload: prompts and lengths of jobs by number, the same in every process."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import numpy as np

from tokenbus.engine.bench.workloads import WORKLOADS
from tokenbus.worker.bench.load.arrivals import read_trace
from tokenbus.worker.bench.load.retail import Retail

if TYPE_CHECKING:
    from tokenbus.worker.bench.options import BenchOptions

# Keys of the random streams; arrival times use another.
_JOB, _SHARED, _OWN = 2, 3, 4
# Seeds name jobs in the engine's log, so they differ between the runs of one engine.
SEEDS_PER_RUN = 100_000_000


class PlannedJob(msgspec.Struct, frozen=True):
    """A job before it is submitted; the prompt is either ids or messages with tools."""

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

    def fields(self, temperature: float) -> dict[str, Any]:
        """Return the fields of the request; every job runs to its full length."""
        prompt: dict[str, Any] = (
            {"token_ids": self.token_ids}
            if self.token_ids is not None
            else {"messages": self.messages, "tools": self.tools}
        )
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


class Prompts(Protocol):
    """Where prompts come from."""

    @property
    def num_jobs(self) -> int | None:
        """Number of jobs there are, None for as many as one likes."""
        ...

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Return the prompt's fields of a `PlannedJob`, and the tokens to generate."""
        ...


class Workload:
    """All jobs of a run."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._prompts = _prompts_of(options)
        shares = np.array(options.priorities)
        self._priorities = np.cumsum(shares / shares.sum())

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
            **({"cache_group": f"run-{options.run_idx}"} | prompt),
        )


class Drawn:
    """Ids drawn at random: `shared_tokens` that the jobs of a group have in common, then own."""

    num_jobs = None

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._shared = lru_cache(maxsize=256)(self._draw_shared)

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Draw lengths, then the ids."""
        options = self._options
        num_own, num_output = (
            int(source.integers(low, high + 1))
            for low, high in (options.prompt_tokens, options.output_tokens)
        )
        own = draw_ids(options, (_OWN, number), num_own)
        return {"token_ids": self._shared(number % options.groups) + own}, num_output

    def _draw_shared(self, group: int) -> list[int]:
        return draw_ids(self._options, (_SHARED, group), self._options.shared_tokens)


class Traced:
    """Ids drawn at random, with the lengths of a trace."""

    def __init__(self, options: BenchOptions) -> None:
        self._options = options
        self._rows = read_trace(options)

    @property
    def num_jobs(self) -> int:
        """Number of requests in the trace."""
        return len(self._rows)

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Draw the ids."""
        del source
        row = self._rows[number % len(self._rows)]
        ids = draw_ids(self._options, (_OWN, number), row.input_tokens)
        return {"token_ids": ids}, row.output_tokens


class Fixed:
    """A workload of the offline benchmark; ids beyond the vocabulary wrap around."""

    def __init__(self, options: BenchOptions) -> None:
        self._vocab_size = options.vocab_size
        self._workload = WORKLOADS[options.workload]()

    @property
    def num_jobs(self) -> int:
        """Number of its sequences."""
        return len(self._workload.prompts)

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Return the prompt as it is."""
        del source
        idx = number % self.num_jobs
        ids = [token_id % self._vocab_size for token_id in self._workload.prompts[idx]]
        return {"token_ids": ids}, self._workload.output_lens[idx]


def draw_ids(options: BenchOptions, key: tuple[int, int], count: int) -> list[int]:
    """Draw token ids; the same key gives the same ids."""
    source = np.random.default_rng([options.seed, options.run_idx, *key])
    ids: list[int] = source.integers(0, options.vocab_size, count).tolist()
    return ids


def _prompts_of(options: BenchOptions) -> Prompts:
    if options.workload == "retail":
        return Retail(options)
    if options.workload in WORKLOADS:
        return Fixed(options)
    return Traced(options) if options.trace is not None else Drawn(options)
