"""One stage for all runs: a server and a worker with the null engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest_asyncio

from tokenbus.worker.bench.deployment import Deployment
from tokenbus.worker.bench.options import BenchOptions

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

TOKENS_PER_S = 50.0


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def deployment() -> AsyncIterator[Deployment]:
    """Start a server and one worker of four rows."""
    worker: dict[str, str | int | float | bool] = {
        "null_tokens_per_s": TOKENS_PER_S,
        "max_num_seqs": 4,
    }
    async with Deployment(BenchOptions(worker=worker)) as running:
        yield running
