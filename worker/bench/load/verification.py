"""The verification of a reader: what its clients read, compared with results and plain readers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.worker.bench.load.plain_readers import PlainReaders
    from tokenbus.worker.bench.load.simulated_client import SimulatedClient
    from tokenbus.worker.bench.options import BenchOptions

# Results of one call.
_NUM_TOGETHER = 256
# How long a channel may be behind its job's reader.
_PLAIN_TIMEOUT_S = 5.0


class Verification:
    """Checks the jobs of a reader once they have ended, many together.

    Its client is one that submitted none of them and knows nothing but what is stored.
    """

    def __init__(self, stranger: AsyncClient, options: BenchOptions, plain: PlainReaders) -> None:
        self._stranger = stranger
        self._options = options
        self._plain = plain

    async def verify(self, clients: Sequence[SimulatedClient]) -> None:
        """Check every token of those whose jobs ended; they note what is found."""
        if not self._options.check:
            return
        ended = [each for each in clients if each.has_ended]
        readers = [each.plain for each in ended if each.plain is not None]
        await self._plain.wait_ended(readers, _PLAIN_TIMEOUT_S)
        for first in range(0, len(ended), _NUM_TOGETHER):
            await self._compare(ended[first : first + _NUM_TOGETHER])
        for each in ended:
            each.check()

    async def _compare(self, clients: Sequence[SimulatedClient]) -> None:
        finished = [each for each in clients if each.is_finished]
        jobs = [each.job for each in finished if each.job is not None]
        outcomes = await self._stranger.results(jobs)
        for each, outcome in zip(finished, outcomes, strict=True):
            each.compare(outcome)
        # Tokens of other jobs may be waiting to be read.
        await asyncio.sleep(0)
