"""Token times: when the tokens of running jobs came, noted once a step for all of them.

As a rule every job that has begun gets tokens in every step. Then a step costs one moment, however
many jobs it has, and the work is done for jobs that begin, end, or miss a step.
"""

from __future__ import annotations

from array import array
from collections import Counter
from typing import TYPE_CHECKING, Generic, TypeVar

from tokenbus.worker.token_moments import NO_MOMENTS, TokenMoments

if TYPE_CHECKING:
    from collections.abc import Sequence

J = TypeVar("J")

# Steps that no job needs any more and that are kept all the same: 8 kB, dropped in one go.
_MAX_SPARE = 1024


class TokenTimes(Generic[J]):
    """The moments of steps that brought tokens, and which of the jobs of kind `J` had some then.

    Steps have numbers. `borders` of a job are numbers in ascending order: with tokens from the
    first to before the second, without them to before the third, and so on.
    """

    __slots__ = (
        "_absent",
        "_begun",
        "_borders",
        "_first",
        "_moments",
        "_newest",
        "_num_more",
        "_num_usual",
    )

    def __init__(self) -> None:
        # Never cut, but begun anew: jobs that have ended have parts of it.
        self._moments = array("d")
        # Those behind these, until somebody needs them: an array takes its time to grow.
        self._newest: list[float] = []
        # The number of the step that `_moments` begins with.
        self._first = 0
        # By the number of their first step, in which order they began.
        self._begun: dict[J, int] = {}
        # The borders of those that have missed a step, but for the end of the last part.
        self._borders: dict[J, list[int]] = {}
        # Those that the last step brought nothing for.
        self._absent: set[J] = set()
        # Of those with several choices, how many rows beyond one in a step they had.
        self._num_more: dict[J, int] = {}
        # The rows of a step that has one for everybody; -1 where rows alone do not tell that.
        self._num_usual = -1

    def begin(self, job: J, num_choices: int) -> None:
        """Let a job take part, from the step on that is noted next."""
        self._begun[job] = self._next()
        if num_choices > 1:
            self._num_more[job] = 0
        self._changed()

    def stepped(
        self, now: float, jobs: Sequence[J | None], counts: Sequence[int], num_rows: int
    ) -> None:
        """Note a step, whose rows are of `jobs` and have `counts` tokens.

        `num_rows` of them have tokens of jobs that take part. A job of one choice has one row at
        most, so that nobody is missing where there are as many rows as jobs.
        """
        if num_rows != self._num_usual:
            if not num_rows:
                return
            absent = self._absent
            if (
                num_rows + len(absent) != len(self._begun)
                or self._num_more
                or not absent.isdisjoint(jobs)
            ):
                self._note_rows(jobs, counts)
        self._newest.append(now)

    def _note_rows(self, jobs: Sequence[J | None], counts: Sequence[int]) -> None:
        """Note which jobs have rows in a step, and how many."""
        begun, step = self._begun, self._next()
        present = Counter(
            job
            for job, count in zip(jobs, counts, strict=True)
            if count and job is not None and job in begun
        )
        absent = begun.keys() - present.keys()
        for job in absent ^ self._absent:
            self._borders.setdefault(job, [begun[job]]).append(step)
        self._absent = absent
        for job in self._num_more.keys() & present.keys():
            self._num_more[job] += present[job] - 1
        self._changed()

    def end(self, job: J) -> TokenMoments:
        """Let a job take part no more; return when it had tokens."""
        began = self._begun.pop(job, None)
        if began is None:
            return NO_MOMENTS
        first = self._first
        moments, end = self._moments, self._next() - first
        if self._num_usual >= 0 and not self._borders:
            ended = TokenMoments(moments, (began - first, end))
        else:
            borders = [number - first for number in self._borders.pop(job, [began])]
            if len(borders) % 2:
                borders.append(end)
            ended = TokenMoments(moments, borders, self._num_more.pop(job, 0))
            self._absent.discard(job)
        self._changed()
        if not self._begun or end > _MAX_SPARE:
            self._drop_spare()
        return ended

    def _next(self) -> int:
        """Return the number of the step that is noted next."""
        if self._newest:
            self._moments.fromlist(self._newest)
            self._newest.clear()
        return self._first + len(self._moments)

    def _changed(self) -> None:
        is_usual = self._begun and not self._absent and not self._num_more
        self._num_usual = len(self._begun) if is_usual else -1

    def _drop_spare(self) -> None:
        """Begin anew with the oldest job's first moment."""
        oldest = next(iter(self._begun.values()), self._next())
        num_spare = oldest - self._first
        if not self._begun or num_spare > _MAX_SPARE:
            self._moments = self._moments[num_spare:]
            self._first = oldest
