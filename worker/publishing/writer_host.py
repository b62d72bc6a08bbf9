"""The writer host: the interface of a publisher that its log writers use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.producer.scripts import Scripts
    from tokenbus.worker.messages.publishing import PublisherReport
    from tokenbus.worker.publishing.job_log import JobLog
    from tokenbus.worker.publishing.progress import ProgressCounter
    from tokenbus.worker.session import Session


class WriterHost(Protocol):
    """Runs log writers: lends them its session and scripts, and decides what the log's word means.

    `generation` is that of the session in which the log writers write; `rows_to_call` says how many
    jobs make a call worth while.
    """

    session: Session
    scripts: Scripts
    worker: str
    emit: Callable[[PublisherReport], None]
    progress_counter: ProgressCounter
    generation: int
    rows_to_call: int

    def touch(self, job: JobLog) -> None:
        """Queue a job if it wants something of its log; safe to repeat."""
        ...

    def report_all_logged(self, job: JobLog) -> None:
        """Tell the worker of a job that goes back and has nothing left to log."""
        ...

    def follow(self, job: JobLog, last: int, num_entries: int) -> None:
        """Go on where the log ends."""
        ...

    def taken(self, job: JobLog, last: int, num_entries: int) -> None:
        """Start or go on with a job whose log was taken over and ends at `last`."""
        ...
