"""The load of one reader: its share of the jobs, from their submits to their verification."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING

from tokenbus.worker.bench.load.arrivals import arrivals
from tokenbus.worker.bench.load.messages import LoadProgress
from tokenbus.worker.bench.load.plain_readers import PlainReaders
from tokenbus.worker.bench.load.simulated_client import SimulatedClient, Tally
from tokenbus.worker.bench.load.verification import Verification
from tokenbus.worker.bench.load.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.worker.bench.load.arrivals import Arrival
    from tokenbus.worker.bench.load.messages import Go, LoadOrder

_VERIFY_S = 0.25
_CANCEL_TIMEOUT_S = 10.0
# Requests made ready before the start, so that the first jobs do not wait for each other's. Where
# all come at once these are all there are, up to what fits into memory.
_NUM_AHEAD = 4096
_NUM_AHEAD_AT_ONCE = 1 << 18
# Jobs of one round trip where all come at once: the first are running before the last are sent.
_NUM_TOGETHER = 64
# The same where answers are taken whole: as many are asked for in one call.
_NUM_RESULTS = 256


class ReaderLoad:
    """The jobs of one reader."""

    def __init__(self, order: LoadOrder, client: AsyncClient, stranger: AsyncClient) -> None:
        self._options = order.options
        self._client = client
        self._workload = Workload(order.options)
        self._share = slice(order.reader_idx, None, order.num_readers)
        self._plan: list[Arrival] = []
        if order.options.is_open_loop:
            self._plan = arrivals(order.options, self._workload.num_jobs)[self._share]
        num_ahead = _NUM_AHEAD_AT_ONCE if self._is_at_once else _NUM_AHEAD
        self._ready = {
            arrival.number: self._workload.job(arrival.number) for arrival in self._plan[:num_ahead]
        }
        self.plain = PlainReaders(client, order.options.plain_readers)
        self._verification = Verification(stranger, order.options, self.plain)
        self._tally = Tally()
        self._open: set[SimulatedClient] = set()
        self._unverified: list[SimulatedClient] = []
        self._ended: list[SimulatedClient] = []

    async def run(self, go: Go) -> None:
        """Drive all jobs to their ends, or give them up."""
        try:
            async with asyncio.timeout(go.give_up_s - time.monotonic()):
                await asyncio.sleep(go.start_s - time.monotonic())
                await (self._open_loop(go) if self._options.is_open_loop else self._users(go))
        except TimeoutError:
            await self._give_up()

    def progress(self) -> LoadProgress:
        """Return what happened since the last time."""
        ended, self._ended = self._ended, []
        tally = self._tally
        return LoadProgress(
            num_submitted=tally.num_submitted,
            num_open=tally.num_open,
            num_tokens=tally.num_tokens,
            ended=[simulated_client.report() for simulated_client in ended],
        )

    async def verify(self) -> None:
        """Check what has ended since the last time."""
        unverified = list(self._unverified)
        await self._verification.verify(unverified)
        del self._unverified[: len(unverified)]
        self._ended += unverified

    async def verify_on_the_way(self) -> None:
        """Check what has ended, for ever; where all jobs come at once this is left for the end.

        There it would take the machine from what is measured.
        """
        while not self._is_at_once:
            await asyncio.sleep(_VERIFY_S)
            await self.verify()

    @property
    def _is_at_once(self) -> bool:
        return self._options.arrival == "at-once"

    async def _open_loop(self, go: Go) -> None:
        async with asyncio.TaskGroup() as tasks:
            if self._is_at_once:
                await self._submit_together(go, tasks)
                return
            for arrival in self._plan:
                at_s = go.start_s + arrival.at_s
                if (pause_s := at_s - time.monotonic()) > 0:
                    await asyncio.sleep(pause_s)
                tasks.create_task(self._run_job(arrival.number, arrival.phase, at_s))

    async def _submit_together(self, go: Go, tasks: asyncio.TaskGroup) -> None:
        """Submit everything in order, many a round trip."""
        num_together = _NUM_RESULTS if self._options.results else _NUM_TOGETHER
        for first in range(0, len(self._plan), num_together):
            clients = [
                self._simulated_client(arrival.number, arrival.phase, go.start_s)
                for arrival in self._plan[first : first + num_together]
            ]
            await self._listen(clients)
            submitted_s = time.monotonic()
            answers = await self._client.submit_many([each.request for each in clients])
            now = time.monotonic()
            accepted = []
            for simulated_client, answer in zip(clients, answers, strict=True):
                if simulated_client.answered(answer, submitted_s, now) and self._options.results:
                    accepted.append(simulated_client)
                else:
                    tasks.create_task(self._follow(simulated_client))
            if accepted:
                tasks.create_task(self._await_results(accepted))

    async def _await_results(self, clients: Sequence[SimulatedClient]) -> None:
        """Wait for the answers of many jobs in one call, each as soon as it is there."""
        jobs = [each.job for each in clients if each.job is not None]
        async for idx, outcome in self._client.results(jobs, as_completed=True):
            clients[idx].take_result(outcome, time.monotonic())
            self._close(clients[idx])

    async def _users(self, go: Go) -> None:
        options = self._options
        users = range(options.users)[self._share]
        async with asyncio.TaskGroup() as tasks:
            for user in users:
                begin_s = go.start_s + options.ramp_s * user / options.users
                tasks.create_task(self._user(user, begin_s, go.stop_s))

    async def _user(self, user: int, begin_s: float, stop_s: float) -> None:
        """Send one job after the other; a user goes round with the number of users as stride."""
        await asyncio.sleep(begin_s - time.monotonic())
        limit = min(self._options.jobs or sys.maxsize, self._workload.num_jobs or sys.maxsize)
        number = user
        while number < limit and (now := time.monotonic()) < stop_s:
            await self._run_job(number, "all", now)
            number += self._options.users

    async def _run_job(self, number: int, phase: str, at_s: float) -> None:
        simulated_client = self._simulated_client(number, phase, at_s)
        await self._listen([simulated_client])
        await self._follow(simulated_client)

    def _simulated_client(self, number: int, phase: str, at_s: float) -> SimulatedClient:
        job = self._ready.pop(number, None) or self._workload.job(number)
        simulated_client = SimulatedClient(
            self._client, self._options, job, self._tally, phase=phase, at_s=at_s
        )
        if self._options.plain_readers:
            simulated_client.plain = self.plain.choose(number)
        self._open.add(simulated_client)
        self._tally.num_submitted += 1
        self._tally.num_open += 1
        return simulated_client

    async def _listen(self, clients: Sequence[SimulatedClient]) -> None:
        await self.plain.listen(
            [(each.plain, each.tenant) for each in clients if each.plain is not None]
        )

    async def _follow(self, simulated_client: SimulatedClient) -> None:
        await simulated_client.ride()
        self._close(simulated_client)

    def _close(self, simulated_client: SimulatedClient) -> None:
        self._open.discard(simulated_client)
        self._tally.num_open -= 1
        self._unverified.append(simulated_client)

    async def _give_up(self) -> None:
        """Report what is left as unfinished and cancel it, so that a server of others is freed."""
        left = list(self._open)
        for simulated_client in left:
            self._close(simulated_client)
        jobs = [each.job for each in left if each.job is not None]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CANCEL_TIMEOUT_S):
                cancels = (self._client.cancel(job) for job in jobs)
                await asyncio.gather(*cancels, return_exceptions=True)
