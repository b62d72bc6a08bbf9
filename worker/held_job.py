"""A job from the pull to its completion: what the worker knows and which way it is going."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from tokenbus.producer.events import Finish, Usage
from tokenbus.worker.errors import WorkerError

if TYPE_CHECKING:
    from tokenbus.producer.events import Failure
    from tokenbus.producer.replies import PulledJob
    from tokenbus.worker.choice_text import ChoiceText
    from tokenbus.worker.prompt import PreparedJob
    from tokenbus.worker.transcript import Transcript


class Phase(Enum):
    """Where a held job stands; `HeldJob.move_to` holds the legal transitions.

    `pulled`: owned, not in the engine. `running`: in the engine. `ending`: its outcome is decided,
    tokens or the terminal entry are not in the log yet. `committed`: the terminal entry is in the
    log, completion is left. `returning`: it goes back to the queue once its tokens are logged.
    `gone`: no longer ours.
    """

    PULLED = "pulled"
    RUNNING = "running"
    ENDING = "ending"
    COMMITTED = "committed"
    RETURNING = "returning"
    GONE = "gone"


_LEGAL = {
    Phase.PULLED: {Phase.RUNNING, Phase.ENDING, Phase.COMMITTED, Phase.RETURNING, Phase.GONE},
    Phase.RUNNING: {Phase.ENDING, Phase.COMMITTED, Phase.RETURNING, Phase.GONE},
    Phase.ENDING: {Phase.COMMITTED, Phase.RETURNING, Phase.GONE},
    # The server may have lost the terminal entry: the commit is made again.
    Phase.COMMITTED: {Phase.ENDING, Phase.GONE},
    Phase.RETURNING: {Phase.COMMITTED, Phase.GONE},
    Phase.GONE: set(),
}


@dataclass(slots=True)
class Timings:
    """Moments of a job on this worker's monotonic clock, in seconds; gaps between tokens in ms."""

    pulled_at: float = field(default_factory=time.monotonic)
    added_at: float | None = None
    admitted_at: float | None = None
    first_token_at: float | None = None
    last_token_at: float | None = None
    gaps_ms: array[float] = field(default_factory=lambda: array("f"))

    def see_tokens(self, now: float) -> None:
        """Note that tokens arrived."""
        if self.first_token_at is None:
            self.first_token_at = now
        elif self.last_token_at is not None:
            self.gaps_ms.append((now - self.last_token_at) * 1e3)
        self.last_token_at = now


class HeldJob:
    """One job that this worker owns.

    `num_logged` is the index up to which the log is known to hold it; it counts only while
    `log_known`, that is between a takeover and the next reconcile.
    """

    def __init__(self, pulled: PulledJob, request_id: int) -> None:
        self.pulled = pulled
        self.job_id = pulled.job_id
        self.epoch = pulled.epoch
        self.request_id = request_id
        self.phase = Phase.PULLED
        self.prepared: PreparedJob | None = None
        self.refusal: Failure | None = None
        self.transcript: Transcript | None = None
        self.texts: list[ChoiceText] = []
        self.reasons: list[str | None] = []
        self.num_logged = 0
        self.num_credited = 0
        self.log_known = False
        self.in_flight = False
        self.is_starting = False
        self.is_leaving = False
        self.is_waiting = pulled.head_of_line
        self.flag = ""
        self.marker_epoch = pulled.epoch
        self.finish: Finish | None = None
        self.crashed = False
        self.cached_tokens = 0
        self.prompt_logprobs: tuple[Any, ...] = ()
        self.prompt_tokens = 0
        self.num_preemptions = 0
        self.timings = Timings()

    @property
    def lane(self) -> str:
        """Name the lane under which output lengths are learned."""
        return f"{self.pulled.priority}:{self.pulled.tenant}"

    @property
    def last(self) -> int:
        """Return the index of the last token known."""
        return self.transcript.last if self.transcript is not None else 0

    @property
    def is_fully_logged(self) -> bool:
        """Tell whether the log holds every token known."""
        return self.log_known and self.num_logged >= self.last

    @property
    def was_added(self) -> bool:
        """Tell whether the engine ever got it."""
        return self.timings.added_at is not None

    @property
    def num_rows(self) -> int:
        """Count the sequences it is in the engine."""
        return self.prepared.params.n if self.prepared is not None else 1

    @property
    def longest_choice(self) -> int:
        """Count the tokens of its longest choice."""
        return max(self.choice_lengths(), default=0)

    def choice_lengths(self) -> list[int]:
        """Count the tokens of each choice."""
        if self.transcript is None:
            return []
        return [self.transcript.num_tokens(choice) for choice in range(len(self.reasons))]

    def move_to(self, phase: Phase) -> None:
        """Change the phase.

        Raises: WorkerError on an illegal transition, which is a bug of ours.
        """
        if phase is self.phase:
            return
        if phase not in _LEGAL[self.phase]:
            raise WorkerError(
                f"job {self.job_id} cannot go from {self.phase.value} to {phase.value}"
            )
        self.phase = phase

    def decide(self, reason: str, error: Failure | None = None) -> None:
        """Fix the outcome; what is not logged yet is logged before the terminal entry."""
        usage = Usage(self.prompt_tokens, self.cached_tokens, self.last)
        choices = tuple(choice or reason for choice in self.reasons)
        self.finish = Finish(reason, usage, error, choices)
        self.move_to(Phase.ENDING)

    def outcome(self) -> str:
        """Return the reason of the whole from those of its choices."""
        for reason in ("failed", "length"):
            if reason in self.reasons:
                return reason
        return "stop"
