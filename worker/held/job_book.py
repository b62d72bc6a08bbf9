"""The job book: what is known of all held jobs together, kept up to date by each of them.

Nobody has to look through them to learn whether one waits or whose pages have changed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from tokenbus.worker.held.token_times import TokenTimes

J = TypeVar("J")


@dataclass(slots=True)
class JobBook(Generic[J]):
    """Held jobs, of the kind `J`, by what they do.

    `changed` are those that may be promised other pages than when those were last counted.
    `waiting` wait at the head of the line and `returning` are being handed back, both in the order
    in which they began to; `running` counts the jobs in the engine by priority. `token_times` knows
    of those that have begun there when their tokens came.
    """

    changed: set[J] = field(default_factory=set)
    waiting: dict[J, None] = field(default_factory=dict)
    returning: dict[J, None] = field(default_factory=dict)
    running: Counter[int] = field(default_factory=Counter)
    token_times: TokenTimes[J] = field(default_factory=TokenTimes)

    def least_urgent(self) -> int | None:
        """Return the number of the least urgent class that runs, None if nothing does."""
        return max((priority for priority, num in self.running.items() if num), default=None)
