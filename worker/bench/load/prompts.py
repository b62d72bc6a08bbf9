"""Sources of prompts: ids drawn at random, with the lengths of a trace, or a fixed workload."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tokenbus.engine.bench.workloads import WORKLOADS
from tokenbus.worker.bench.load.arrivals import read_trace

if TYPE_CHECKING:
    from tokenbus.worker.bench.options import BenchOptions

# Keys of the random streams; arrival times and jobs use others.
_SHARED, _OWN = 3, 4


class Prompts(Protocol):
    """Where prompts come from."""

    @property
    def num_jobs(self) -> int | None:
        """Number of jobs there are, None for as many as one likes."""
        ...

    def prompt(self, number: int, source: np.random.Generator) -> tuple[dict[str, Any], int]:
        """Return the prompt's fields of a `PlannedJob`, and the tokens to generate."""
        ...


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
