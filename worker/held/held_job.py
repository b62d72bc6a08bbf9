"""A held job, from the pull to its completion: what the worker knows of it, and its phase."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from tokenbus.engine.types import DraftCount
from tokenbus.producer.scripts.timeline import lived_text
from tokenbus.worker.errors import WorkerError
from tokenbus.worker.held.job_book import JobBook
from tokenbus.worker.token_moments import NO_MOMENTS, TokenMoments

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
    """Moments of a job on this worker's monotonic clock, in seconds.

    `submitted_at` is reckoned from the age that the server told with the pull, `published_at` is
    when the log had the first token that this worker computed, `parse_s` what reading its messages
    took. `tokens_at` are the moments of its tokens, known once it has stopped running.
    """

    submitted_at: float = 0.0
    pulled_at: float = field(default_factory=time.monotonic)
    added_at: float | None = None
    admitted_at: float | None = None
    first_token_at: float | None = None
    published_at: float | None = None
    parse_s: float = 0.0
    tokens_at: TokenMoments = NO_MOMENTS

    @property
    def lived(self) -> str:
        """Return what the timeline of the job is told: its moments since the pull."""
        admitted, first = self.admitted_at, self.first_token_at
        return lived_text(
            None if admitted is None else admitted - self.pulled_at,
            None if first is None else first - self.pulled_at,
        )


class HeldJob:
    """One job that this worker owns, as far as the queue and the engine are concerned.

    What its log holds is known to its publisher, which `publisher_link` leads to. `lengths` counts
    the tokens of each choice that the engine has delivered; those behind a stop string go again
    when the end is decided. `first` is the index after which it began here. `evidence` speaks
    against it until it has `passed` the place of its last crash. `num_running` counts the choices
    that the engine has not ended. `listen` is the secret of the client that listens, or empty.
    `recount_at` gives the length of each choice from which on the
    pages of the job have to be counted anew.

    The `book` hears of everything that changes what the job is promised; `lengths` may be raised in
    place up to `recount_at`.
    """

    def __init__(
        self, pulled: PulledJob, request_id: int, book: JobBook[HeldJob] | None = None
    ) -> None:
        self.book: JobBook[HeldJob] = book if book is not None else JobBook()
        self.pulled = pulled
        self.job_id = pulled.job_id
        # Under which output lengths are learned.
        self.lane = f"{pulled.priority}:{pulled.tenant}"
        self.epoch = pulled.epoch
        self.listen = pulled.listen
        self.request_id = request_id
        self.phase = Phase.PULLED
        self._prepared: PreparedJob | None = None
        self.refusal: Failure | None = None
        self.publisher_link: PublisherLink | None = None
        self.taken: Taken | None = None
        self._lengths: list[int] = []
        self.recount_at: list[int] = []
        self.num_running = 0
        self.is_all_logged = False
        self.num_logged = 0
        self.is_leaving = False
        self._is_waiting = False
        self.is_waiting = pulled.head_of_line
        self.flag = ""
        self.marker_epoch = pulled.epoch
        self.finish: Finish | None = None
        self.evidence = pulled.evidence
        self.first = 0
        self.crash: Crash | None = None
        self.why_back = ""
        self.passed: Passed = ""
        self.cached_tokens = 0
        self.prompt_tokens = 0
        self.num_preemptions = 0
        self.drafts = DraftCount()
        self._is_preempted = False
        self.timings = Timings()
        self.timings.submitted_at = self.timings.pulled_at - pulled.age_ms / 1e3

    @property
    def prepared(self) -> PreparedJob | None:
        """Its tokenised request, once it is known."""
        return self._prepared

    @prepared.setter
    def prepared(self, prepared: PreparedJob) -> None:
        self._prepared = prepared
        self.changed()

    @property
    def lengths(self) -> list[int]:
        """How many tokens of each choice the engine has delivered."""
        return self._lengths

    @lengths.setter
    def lengths(self, lengths: list[int]) -> None:
        self._lengths = lengths
        self.recount_at = [0] * len(lengths)
        self.changed()

    @property
    def is_waiting(self) -> bool:
        """Tell whether it waits at the head of the line."""
        return self._is_waiting

    @is_waiting.setter
    def is_waiting(self, is_waiting: bool) -> None:
        self._is_waiting = is_waiting
        if is_waiting:
            self.book.waiting[self] = None
        else:
            self.book.waiting.pop(self, None)
        self.changed()

    @property
    def is_preempted(self) -> bool:
        """Tell whether the engine has taken its pages back for now."""
        return self._is_preempted

    @is_preempted.setter
    def is_preempted(self, is_preempted: bool) -> None:
        self._is_preempted = is_preempted
        self.changed()

    @property
    def crashed(self) -> bool:
        """Tell whether it goes back because something died or broke."""
        return self.crash is not None

    @property
    def last(self) -> int:
        """Return the index of the last token delivered."""
        return sum(self._lengths)

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
            and not self._is_preempted
        )

    @property
    def num_rows(self) -> int:
        """Count the sequences it is in the engine."""
        return self._prepared.params.n if self._prepared is not None else self.pulled.num_choices

    @property
    def longest_choice(self) -> int:
        """Count the tokens of its longest choice."""
        return max(self._lengths, default=0)

    def changed(self) -> None:
        """Let its pages be counted anew at the next look."""
        self.book.changed.add(self)

    def see_admission(self, now: float, num_cached_tokens: int) -> None:
        """Note that the engine has given it its pages, those of cached prompt tokens included."""
        self.timings.admitted_at = now
        self.cached_tokens = num_cached_tokens
        self.changed()

    def see_tokens(self, choice: int, count: int, now: float) -> bool:
        """Note tokens of one choice; tell whether they are the job's first."""
        lengths = self._lengths
        length = lengths[choice] = lengths[choice] + count
        is_first = self.timings.first_token_at is None
        if is_first:
            self.timings.first_token_at = now
            self.book.token_times.begin(self, len(lengths))
        if self._is_preempted or length >= self.recount_at[choice]:
            self._is_preempted = False
            self.book.changed.add(self)
        return is_first

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
        book, before = self.book, self.phase
        if before is Phase.RUNNING:
            book.running[self.pulled.priority] -= 1
            self.timings.tokens_at = book.token_times.end(self)
        elif before is Phase.HANDING_BACK:
            del book.returning[self]
        if phase is Phase.RUNNING:
            book.running[self.pulled.priority] += 1
        elif phase is Phase.HANDING_BACK:
            book.returning[self] = None
        elif phase is Phase.GONE:
            book.waiting.pop(self, None)
        self.phase = phase
        self.changed()
