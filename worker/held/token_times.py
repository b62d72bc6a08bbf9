"""Token times: when the tokens of running jobs came, noted once a step for all of them.

As a rule every job that has begun gets tokens in every step. Then a step costs one moment, however
many jobs it has, and the work is done for jobs that begin, end, or miss a step.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sequence

J = TypeVar("J")

# Steps that no job needs any more and that are kept all the same: 8 kB, dropped in one go.
_MAX_SPARE = 1024


@dataclass(slots=True)
class _Attendance:
    """The steps in which one job had tokens.

    `borders` are numbers of steps in ascending order: with tokens from the first to before the
    second, without them to before the third, and so on. `num_more` counts rows of the job beyond
    one in a step: those of its other choices.
    """

    borders: list[int] = field(default_factory=list)
    num_more: int = 0


class TokenTimes(Generic[J]):
    """The moments of steps that brought tokens, and which of the jobs of kind `J` had some then."""

    def __init__(self) -> None:
        self._moments = array("d")
        # The number of the step that `_moments` begins with.
        self._first = 0
        # In the order in which they began.
        self._attendances: dict[J, _Attendance] = {}
        # Of those, the ones that the last step brought nothing for.
        self._absent: set[J] = set()
        self._with_choices: set[J] = set()

    def begin(self, job: J, num_choices: int) -> None:
        """Let a job take part, from the step on that is noted next."""
        self._attendances[job] = _Attendance([self._first + len(self._moments)])
        if num_choices > 1:
            self._with_choices.add(job)

    def stepped(
        self, now: float, jobs: Sequence[J | None], counts: Sequence[int], num_rows: int
    ) -> None:
        """Note a step, whose rows are of `jobs` and have `counts` tokens.

        `num_rows` of them have tokens of jobs that take part. A job of one choice has one row at
        most, so that nobody is missing where there are as many rows as jobs.
        """
        if not num_rows:
            return
        absent = self._absent
        if (
            num_rows + len(absent) != len(self._attendances)
            or self._with_choices
            or (absent and not absent.isdisjoint(jobs))
        ):
            self._note_rows(jobs, counts)
        self._moments.append(now)

    def _note_rows(self, jobs: Sequence[J | None], counts: Sequence[int]) -> None:
        """Note which jobs have rows in a step, and how many."""
        attendances, step = self._attendances, self._first + len(self._moments)
        present = Counter(
            job
            for job, count in zip(jobs, counts, strict=True)
            if count and job is not None and job in attendances
        )
        absent = attendances.keys() - present.keys()
        for job in absent ^ self._absent:
            attendances[job].borders.append(step)
        self._absent = absent
        for job in self._with_choices & present.keys():
            attendances[job].num_more += present[job] - 1

    def end(self, job: J) -> array[float]:
        """Let a job take part no more.

        Returns: when it had tokens, in ascending order, once for each row.
        """
        attendance = self._attendances.pop(job, None)
        if attendance is None:
            return array("d")
        self._absent.discard(job)
        self._with_choices.discard(job)
        first, borders = self._first, attendance.borders
        if len(borders) % 2:
            borders.append(first + len(self._moments))
        times = self._moments[borders[0] - first : borders[1] - first]
        for start, end in zip(borders[2::2], borders[3::2], strict=True):
            times += self._moments[start - first : end - first]
        if attendance.num_more:
            # Where in time the other rows lie makes no difference to the gaps, which are none.
            times.extend(times[-1:] * attendance.num_more)
        self._drop_spare()
        return times

    def _drop_spare(self) -> None:
        """Drop the moments before the oldest job's first."""
        oldest = next(iter(self._attendances.values()), None)
        num_spare = len(self._moments) if oldest is None else oldest.borders[0] - self._first
        if oldest is None or num_spare > _MAX_SPARE:
            del self._moments[:num_spare]
            self._first += num_spare
