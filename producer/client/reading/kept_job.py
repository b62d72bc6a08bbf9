"""A kept job: what a client has heard of one that it submitted, until somebody reads it.

A token costs one turn of a list here. It is kept as it came, because a short job is read whole, and
a long one is left to its log past `max_tokens`.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Protocol

from tokenbus.producer.contract.result import build_result

if TYPE_CHECKING:
    from tokenbus.producer.contract.address import JobAddress
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.result import JobResult


class Waiter(Protocol):
    """Who waits for the ends of jobs."""

    def ended(self, job: KeptJob) -> None:
        """Take a job whose terminal event was heard."""

    def missed(self) -> None:
        """Note that the ends of some may not have been heard."""

    def failed(self, error: Exception) -> None:
        """Note that nothing more is heard, of any job."""


class KeptJob:
    """The events of one job, in order and without a gap from the first on, or none of them.

    `has_hole` says that something is missing: the log or the result has to be read. `end` is the
    terminal event once it was heard; `waiter`, if there is one, is told then.
    """

    __slots__ = (
        "_max_tokens",
        "address",
        "end",
        "events",
        "has_hole",
        "heard_at",
        "is_told_whole",
        "last",
        "num_tokens",
        "shard",
        "version",
        "waiter",
    )

    def __init__(
        self,
        address: JobAddress,
        shard: int,
        version: int,
        max_tokens: int,
        *,
        is_told_whole: bool = True,
    ) -> None:
        """Begin before the job is submitted; `is_told_whole`: events tell all of its result."""
        self.address = address
        self.shard = shard
        self.version = version
        self.is_told_whole = is_told_whole
        self.events: list[Event] = []
        self.num_tokens = 0
        self.last = 0
        self.has_hole = False
        self.end: Event | None = None
        self.heard_at = monotonic()
        self.waiter: Waiter | None = None
        self._max_tokens = max_tokens

    def put(self, event: Event) -> None:
        """Take an event of the job; one that comes again is left out."""
        self.heard_at = monotonic()
        if event.finish is not None:
            if event.to != self.last:
                self.break_off()
            self.end = event
            if self.waiter is not None:
                self.waiter.ended(self)
        elif self.has_hole or event.to <= self.last:
            return
        elif event.start > self.last + 1 or self.num_tokens + len(event.ids) > self._max_tokens:
            self.break_off()
        elif event.told is not None and event.start <= self.last:
            # What the rest of it adds to the message is read from the log.
            self.break_off()
        else:
            new = event if event.start > self.last else event.after(self.last)
            self.events.append(new)
            self.num_tokens += len(new.ids)
            self.last = event.to

    def break_off(self) -> None:
        """Forget what was heard: the log or the result has to be read."""
        self.has_hole = True
        self.events = []
        self.num_tokens = 0

    def result(self) -> JobResult | None:
        """Return the result of a job that has ended, if its events tell the whole of it."""
        end = self.end
        if end is None or end.finish is None or self.has_hole or not self.is_told_whole:
            return None
        finish = end.finish
        num_choices = max(1, len(finish.choices))
        address = self.address.text
        return build_result(address, end.epoch, self.events, finish, num_choices, self.version)
