"""A held job, from the pull to its completion: what the worker knows of it, and its phase."""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from tokenbus.worker.errors import WorkerError

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Failure, Finish
    from tokenbus.producer.scripts.evidence import Crash, Passed
    from tokenbus.producer.scripts.replies import PulledJob
    from tokenbus.worker.held.prepared_job import PreparedJob
    from tokenbus.worker.held.publisher_link import PublisherLink
    from tokenbus.worker.messages.publishing import Taken


class Phase(Enum):
    """Where a held job stands; `HeldJob.move_to` holds the legal transitions.

    `pulled`: owned, not in the engine. `running`: in the engine. `ending`: its outcome is decided,
    tokens or the terminal entry are not in the log yet. `committed`: the terminal entry is in the
    log, completion is left. `returning`: it is handed back once its tokens are logged. `gone`: this
    worker holds it no more.
    """

    PULLED = "pulled"
    RUNNING = "running"
    ENDING = "ending"
    COMMITTED = "committed"
    HANDING_BACK = "returning"
    GONE = "gone"


_LEGAL = {
    Phase.PULLED: {Phase.RUNNING, Phase.ENDING, Phase.COMMITTED, Phase.HANDING_BACK, Phase.GONE},
    Phase.RUNNING: {Phase.ENDING, Phase.COMMITTED, Phase.HANDING_BACK, Phase.GONE},
    Phase.ENDING: {Phase.COMMITTED, Phase.HANDING_BACK, Phase.GONE},
    Phase.COMMITTED: {Phase.GONE},
    Phase.HANDING_BACK: {Phase.COMMITTED, Phase.GONE},
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

    def see_tokens(self, now: float) -> bool:
        """Note that tokens arrived; tell whether they are the first."""
        is_first = self.first_token_at is None
        if is_first:
            self.first_token_at = now
        elif self.last_token_at is not None:
            self.gaps_ms.append((now - self.last_token_at) * 1e3)
        self.last_token_at = now
        return is_first


class HeldJob:
    """One job that this worker owns, as far as the queue and the engine are concerned.

    What its log holds is known to its publisher, which `publisher_link` leads to. `lengths` counts
    the tokens of each choice that the engine has delivered; those behind a stop string go again
    when the end is decided. `first` is the index after which it began here. `evidence` speaks
    against it until it has `passed` the place of its last crash. `num_running` counts the choices
    that the engine has not ended. `listen` is the secret of the client that listens, or empty.
    """

    def __init__(self, pulled: PulledJob, request_id: int) -> None:
        self.pulled = pulled
        self.job_id = pulled.job_id
        # Under which output lengths are learned.
        self.lane = f"{pulled.priority}:{pulled.tenant}"
        self.epoch = pulled.epoch
        self.listen = pulled.listen
        self.request_id = request_id
        self.phase = Phase.PULLED
        self.prepared: PreparedJob | None = None
        self.refusal: Failure | None = None
        self.publisher_link: PublisherLink | None = None
        self.taken: Taken | None = None
        self.lengths: list[int] = []
        self.num_running = 0
        self.is_all_logged = False
        self.num_logged = 0
        self.is_leaving = False
        self.is_waiting = pulled.head_of_line
        self.flag = ""
        self.marker_epoch = pulled.epoch
        self.finish: Finish | None = None
        self.evidence = pulled.evidence
        self.first = 0
        self.crash: Crash | None = None
        self.passed: Passed = ""
        self.cached_tokens = 0
        self.prompt_tokens = 0
        self.num_preemptions = 0
        self.is_preempted = False
        self.timings = Timings()

    @property
    def crashed(self) -> bool:
        """Tell whether it goes back because something died or broke."""
        return self.crash is not None

    @property
    def last(self) -> int:
        """Return the index of the last token delivered."""
        return sum(self.lengths)

    @property
    def is_fresh(self) -> bool:
        """Tell whether nobody has owned it before, as far as the queue knows."""
        return self.epoch == 1 and self.pulled.num_logged == 0

    @property
    def was_added(self) -> bool:
        """Tell whether the engine ever got it."""
        return self.timings.added_at is not None

    @property
    def is_in_engine(self) -> bool:
        """Tell whether the engine has admitted it and lets it hold pages."""
        return (
            self.phase is Phase.RUNNING
            and self.timings.admitted_at is not None
            and not self.is_preempted
        )

    @property
    def num_rows(self) -> int:
        """Count the sequences it is in the engine."""
        return self.prepared.params.n if self.prepared is not None else self.pulled.num_choices

    @property
    def longest_choice(self) -> int:
        """Count the tokens of its longest choice."""
        return max(self.lengths, default=0)

    def move_to(self, phase: Phase) -> None:
        """Change the phase.

        Raises: WorkerError on an illegal transition, which is a bug of the worker.
        """
        if phase is self.phase:
            return
        if phase not in _LEGAL[self.phase]:
            raise WorkerError(
                f"job {self.job_id} cannot go from {self.phase.value} to {phase.value}"
            )
        self.phase = phase
