"""The demo model under a kill: 135 million weights go on in the middle of a sentence."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from rides.demo_cargo import DemoCargo
from rides.ride import Ride
from rides.scale import long_row
from workers.forkserver import forked_worker

from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.weights import model_store

if TYPE_CHECKING:
    import random

    from tokenbus.producer.client.async_client import AsyncClient


@pytest.fixture
def demo_cargo() -> DemoCargo:
    """Give jobs for the demo model; skip where it is neither kept nor to be fetched."""
    try:
        return DemoCargo(model_store.pull("smollm2-135m"))
    except ModelNotFound as error:
        pytest.skip(str(error))


@long_row
async def test_demo_model_goes_on_where_the_killed_worker_stopped(
    client: AsyncClient, demo_cargo: DemoCargo, rng: random.Random, redis_url: str, num_jobs: int
) -> None:
    """Greedy tokens in fp32 are those of the unbroken run, all but the near ties."""
    ride = Ride(client, demo_cargo, rng, redis_url, patience_s=2 * PATIENCE_S)
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(forked_worker(**ride.settings()))
        await ride.board(num_jobs, 32)
        await ride.until_seen(5, 4)
        first.kill()
        await stack.enter_async_context(forked_worker(**ride.settings()))
        stories = await ride.arrive()
        assert any(len(story.epochs) > 1 for story in stories.values())
        await ride.check_nothing_left()
    share = demo_cargo.check_answers()
    print(f"{share:.1%} of the answers met no near tie")
    assert share >= 0.95
