"""Log opening: a pulled job gets its publisher, which takes the job's log over.

A job that nobody has owned before has no log: it starts at once, and what comes of it first creates
the log.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.text.detokenizer import WINDOW_CONTEXT
from tokenbus.worker.messages.publishing import Taken, TextRules

if TYPE_CHECKING:
    from tokenbus.engine.types import EngineLimits
    from tokenbus.worker.held.held_job import HeldJob
    from tokenbus.worker.jobs.start import Starter
    from tokenbus.worker.publishing.publisher_pool import PublisherPool


class LogOpener:
    """Gives each pulled job a publisher, which takes its log over."""

    def __init__(self, starter: Starter, publishers: PublisherPool, limits: EngineLimits) -> None:
        self._starter = starter
        self._publishers = publishers
        self._limits = limits

    def open_log(self, job: HeldJob) -> None:
        """Start a fresh job at once; let the log of any other be taken over, and wait for that.

        Safe to repeat.
        """
        if job.publisher_link is not None:
            return
        rules, is_ahead = self._rules(job), job.is_fresh
        self._publishers.take_over(job, rules, is_ahead=is_ahead)
        if is_ahead:
            num_choices = 1 if rules is None else rules.num_choices
            nothing = Taken(0, job.request_id, 0, [()] * num_choices, [None] * num_choices)
            self._starter.start(job, nothing)

    def _rules(self, job: HeldJob) -> TextRules | None:
        if job.prepared is None:
            return None
        params = job.prepared.params
        eos = () if params.ignore_eos else self._limits.eos_token_ids
        return TextRules(
            num_choices=params.n,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            stop=params.stop,
            include_stop=params.include_stop,
            stop_ids=(*params.stop_token_ids, *eos),
            prompt_tail=tuple(job.prepared.prompt_ids[-WINDOW_CONTEXT:]),
            tools=job.prepared.tool_reader,
            eos_ids=self._limits.eos_token_ids,
            sampling=dict(job.prepared.sampling),
        )
