"""A rank of a group dies or is stopped: the group ends within seconds, and its jobs go on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING

import pytest
from matrix import SERVER_KINDS
from patience import PATIENCE_S, until_within
from rides.scale import long_row, number_of
from workers.forkserver import forked_worker
from workers.null_workers import command

from tokenbus.producer.contract.address import JobAddress

if TYPE_CHECKING:
    from rides.ride import Ride
    from workers.forkserver import ForkedWorker

NUM_RANKS = 2
NUM_KILLS = number_of("RANK_KILLS", short=1, full=10)
# Of the ranks; the worker beside them is on the CPU.
DEVICE = os.environ.get("CHAOS_RANK_DEVICE", "cpu")
# From the fault of one rank to the end of the last one.
END_S = 5.0
LEASE_S = 5
# More for ranks that are fast.
NUM_TOKENS = number_of("RANK_TOKENS", short=120, full=120)


class _Group:
    """A worker whose engine is a group of ranks, and the jobs that it holds."""

    def __init__(self, ride: Ride, worker: ForkedWorker) -> None:
        self.name = ""
        self._ride = ride
        self._scripts = ride.client.scripts
        self._worker = worker

    async def until_named(self) -> None:
        """Wait until it can run jobs as the only worker of the pool."""
        async with asyncio.timeout(PATIENCE_S):
            while not (ready := (await self._ride.client.status()).ready):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        [self.name] = ready

    async def until_beside_another(self) -> None:
        """Wait until another worker can run jobs as well: it may have to compile first."""
        async with asyncio.timeout(PATIENCE_S):
            while len((await self._ride.client.status()).ready) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    async def until_restarted(self, number: int) -> None:
        """Wait until so many groups have taken the place of one that had ended."""
        key = self._scripts.keys.of("status", self.name)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = json.loads(await command(self._scripts, "GET", key) or "{}")
                if told.get("ready") and told["counters"]["engine_restarts"] == number:
                    return
                await asyncio.sleep(0.02)

    async def until_amid(self, phase: str) -> dict[str, int]:
        """Wait until one of its jobs is where a rank is to be lost; return the epochs of all."""
        least = {"prefill": 0, "decode": 5}[phase]
        key = self._scripts.keys.of("held", self.name)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                told = await command(self._scripts, "HGETALL", key)
                held = {
                    JobAddress.parse(address.decode()).job_id: int(epoch)
                    for address, epoch in told.items()
                }
                if any(self._ride.seen[job_id] >= least for job_id in held):
                    return held
                await asyncio.sleep(0.01)

    async def lose(self, rank: int, number: signal.Signals) -> None:
        """Send a signal to a rank, and see all of them end in time."""
        handles = [os.pidfd_open(pid) for pid in self._worker.rank_pids()]
        assert len(handles) == NUM_RANKS
        loop, ended = asyncio.get_running_loop(), [asyncio.Event() for _ in handles]
        for handle, event in zip(handles, ended, strict=True):
            loop.add_reader(handle, event.set)
        signal.pidfd_send_signal(handles[rank], number)
        try:
            await until_within(lambda: all(event.is_set() for event in ended), END_S)
        finally:
            for handle in handles:
                loop.remove_reader(handle)
                os.close(handle)


@long_row
@pytest.mark.parametrize("phase", ["prefill", "decode"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda each: each.name)
@pytest.mark.parametrize("rank", range(NUM_RANKS))
async def test_rank_is_lost(
    ride: Ride, num_jobs: int, server_kind: str, rank: int, number: signal.Signals, phase: str
) -> None:
    """Again and again the group ends, and comes back; meanwhile a worker beside it goes on.

    Each job that the group had is at its next token when a lease and two seconds have passed.
    """
    if server_kind != SERVER_KINDS[0]:
        pytest.skip("what is tried lies between the processes of a worker")
    settings = ride.settings(lease_ttl_s=LEASE_S, renew_interval_s=1)
    ranks = settings | {"tensor_parallel": NUM_RANKS, "max_batch_tokens": 32, "device": DEVICE}
    async with AsyncExitStack() as stack:
        group = _Group(ride, await stack.enter_async_context(forked_worker(**ranks)))
        await group.until_named()
        await stack.enter_async_context(forked_worker(**settings))
        await group.until_beside_another()
        for kill in range(NUM_KILLS):
            await group.until_restarted(kill)
            await ride.board(num_jobs // NUM_KILLS, NUM_TOKENS)
            held = await group.until_amid(phase)
            lost = asyncio.create_task(group.lose(rank, number))
            await until_within(partial(ride.went_on, held), LEASE_S + 2)
            await lost
        await ride.arrive()
        await ride.check_nothing_left()
