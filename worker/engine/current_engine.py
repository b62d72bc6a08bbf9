"""The engine process that jobs run in now; after a crash the next one takes its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.worker.errors import EngineDied
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.messages.engine import AbortRequest, Credit

if TYPE_CHECKING:
    from tokenbus.engine.types import EngineStats
    from tokenbus.worker.engine.link import EngineLink
    from tokenbus.worker.errors import DeathCause
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.messages.engine import AddRequest, Command

# Credit goes back in lumps: a message per confirmed token would cost more than the token.
CREDIT_LUMP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Outage:
    """Why there is no engine now: what the last one died of, and how many did in a row.

    Those that die while the job to blame is searched for make no row.
    """

    cause: DeathCause
    reason: str
    num_in_a_row: int
    pause_s: float


class CurrentEngine:
    """The one engine that all parts of a worker talk to, whichever process it is.

    A command to a process that has died is dropped: its jobs are handed back in any case. One that
    takes no step for `stall_s` counts as hung.
    """

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._link: EngineLink | None = None
        self._uncredited = 0
        self.outage: Outage | None = None

    def replace(self, link: EngineLink) -> None:
        """Let a new process take the place of the one before, or be the first."""
        self._link = link
        self.outage = None

    @property
    def link(self) -> EngineLink:
        """The link to the process.

        Raises: EngineDied before the first has started.
        """
        if self._link is None:
            raise EngineDied("no engine has been started")
        return self._link

    @property
    def is_up(self) -> bool:
        """Tell whether jobs may be given to the engine."""
        return self._link is not None and self._link.is_alive

    @property
    def is_hung(self) -> bool:
        """Tell whether the process has not moved for too long."""
        return self._link is not None and self._link.stalled_s() > self._stall_s

    @property
    def moves(self) -> bool:
        """Tell whether the engine may be vouched for: it is down, or it was seen to move."""
        return not self.is_up or not self.is_hung

    @property
    def num_ranks(self) -> int:
        """Count the processes that run the model together, 0 while there is no engine."""
        link = self._link
        return 0 if link is None or not link.is_alive else 1 + len(link.ready.follower_pids)

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._link.pid if self._link is not None else None

    def stats(self) -> EngineStats | None:
        """Return the engine's counters after its last step, None before the first."""
        return self._link.stats if self._link is not None else None

    def add(self, request: AddRequest) -> None:
        """Give a job to the engine."""
        self.send(request)

    def stop(self, job: HeldJob) -> None:
        """Take a job out of the engine, if it is in it."""
        if job.phase is Phase.RUNNING:
            self.send(AbortRequest(job.request_id))

    def stop_choice(self, job: HeldJob, choice: int) -> None:
        """Take one choice of a job out of the engine, if the job is in it."""
        if job.phase is Phase.RUNNING:
            self.send(AbortRequest(job.request_id, choice))

    def send(self, command: Command) -> None:
        """Give a command to the process."""
        self.link.send(command)

    def credit(self, num_tokens: int, *, flush: bool = False) -> None:
        """Return room for tokens that were logged or dropped."""
        self._uncredited += num_tokens
        if self._uncredited >= (1 if flush else CREDIT_LUMP_TOKENS):
            self.send(Credit(self._uncredited))
            self._uncredited = 0

    async def kill(self) -> None:
        """End the process, if one was started, and wait for it."""
        if self._link is not None:
            await self._link.kill()
