"""The ride: all jobs handed to the bus at once, and every reader's clock."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from tokenbus.worker.demo.figures import JobClock
from tokenbus.worker.demo.view import Answer, BusState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.contract.events import Event
    from tokenbus.worker.demo.jobs import ShopJob
    from tokenbus.worker.demo.view import View


class BusRide:
    """Jobs under way: what their readers saw, and when."""

    def __init__(self, client: AsyncClient, jobs: Sequence[ShopJob], max_tokens: int) -> None:
        self._client = client
        self._jobs = jobs
        self._max_tokens = max_tokens
        self.clocks: list[JobClock] = []
        self.state = BusState([Answer(job.team, job.question) for job in jobs])

    async def run(
        self, view: View, read_gauges: Callable[[BusState], None], timeout_s: float
    ) -> None:
        """Send everything, follow it to the end and show it meanwhile; a late job stays open."""
        start_s = time.monotonic()
        self.clocks = [JobClock(start_s) for _ in self._jobs]
        try:
            async with asyncio.TaskGroup() as tasks:
                passengers = [tasks.create_task(self._ride(i)) for i in range(len(self._jobs))]
                with view:
                    pending = set(passengers)
                    while pending and (left_s := start_s + timeout_s - time.monotonic()) > 0:
                        pause_s = min(view.interval_s, left_s)
                        _, pending = await asyncio.wait(pending, timeout=pause_s)
                        self._show(view, read_gauges, time.monotonic() - start_s)
                for passenger in pending:
                    passenger.cancel()
        except ExceptionGroup as group:
            # One reason is enough: passengers fail together when the server goes.
            raise group.exceptions[0] from group

    def _show(self, view: View, read_gauges: Callable[[BusState], None], elapsed_s: float) -> None:
        read_gauges(self.state)
        self.state.advance(elapsed_s)
        view.show(self.state)

    async def _ride(self, index: int) -> None:
        messages = self._jobs[index].messages
        job = await self._client.submit(
            messages=messages, max_tokens=self._max_tokens, temperature=0.0
        )
        async for event in self._client.stream(job.job_id):
            self._take(index, event, time.monotonic())

    def _take(self, index: int, event: Event, now_s: float) -> None:
        clock, answer = self.clocks[index], self.state.answers[index]
        if event.finish is None:
            clock.tokens_arrived(len(event.ids), now_s)
            self.state.num_tokens += len(event.ids)
            answer.started = True
            answer.text += event.text
            return
        usage = event.finish.usage
        clock.ended_s, clock.finish_reason = now_s, event.finish.reason
        clock.num_prompt_tokens, clock.num_cached_tokens = usage.prompt_tokens, usage.cached_tokens
        answer.ended = True
        if event.finish.error is not None:
            answer.text = f"{event.finish.error.code}: {event.finish.error.message}"
