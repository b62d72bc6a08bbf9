"""Token moments: when the tokens of a job came, as parts of the moments of steps.

Jobs that run together share the moments of their steps. So the gaps between the tokens of many jobs
are counted together: each gap between two steps is looked at once, for however many jobs it is.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np

from tokenbus.producer.telemetry.histogram import BOUNDS_S

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

_BOUNDS_S = np.array(BOUNDS_S)
_NUM_BUCKETS = len(BOUNDS_S) + 1


class TokenMoments:
    """The moments of one job, in ascending order, once for each of its rows in a step.

    `steps` has the moments of steps, in seconds, and may grow. `borders` are places in it: the job
    had tokens from the first to before the second, from the third to before the fourth, and so on.
    `num_more` counts its rows beyond one in a step.
    """

    __slots__ = ("_borders", "_num_more", "_steps")

    def __init__(self, steps: array[float], borders: Sequence[int] = (), num_more: int = 0) -> None:
        self._steps = steps
        self._borders = borders
        self._num_more = num_more

    def __bool__(self) -> bool:
        """Tell whether there are any."""
        return bool(self._borders)

    @property
    def last(self) -> float | None:
        """Return the last of them, if there are any."""
        return self._steps[self._borders[-1] - 1] if self._borders else None

    def listed(self) -> array[float]:
        """Return all of them."""
        times = array("d")
        for start, end in zip(self._borders[::2], self._borders[1::2], strict=True):
            times += self._steps[start:end]
        # Where in time the other rows lie makes no difference to the gaps, which are none.
        times.extend(times[-1:] * self._num_more)
        return times

    def sorted_gaps_s(self) -> NDArray[np.float32]:
        """Return the gaps between them, in seconds and in ascending order."""
        moments = np.frombuffer(self.listed())
        # One gap for each token: what sorts them in C takes a tenth of what Python's own does.
        gaps_s = (moments[1:] - moments[:-1]).astype(np.float32)
        gaps_s.sort()
        return gaps_s


NO_MOMENTS = TokenMoments(array("d"))


def count_gaps(jobs: Sequence[TokenMoments]) -> tuple[dict[int, int], float]:
    """Count the gaps between the tokens of each job, of all jobs together.

    Returns: how many there are by the buckets of a `Histogram`, and their sum in seconds.
    """
    by_steps: dict[int, list[TokenMoments]] = defaultdict(list)
    for job in jobs:
        if job:
            by_steps[id(job._steps)].append(job)
    counts, sum_s = np.zeros(_NUM_BUCKETS), 0.0
    for gaps_s, weights in (*map(_within_parts, by_steps.values()), _between_parts(jobs)):
        if len(gaps_s):
            buckets = _BOUNDS_S.searchsorted(gaps_s)
            counts += np.bincount(buckets, weights, _NUM_BUCKETS)
            sum_s += float(gaps_s @ weights)
    return {bucket: int(count) for bucket, count in enumerate(counts.tolist()) if count}, sum_s


def _within_parts(jobs: Sequence[TokenMoments]) -> tuple[Floats, Floats]:
    """Return the gaps between steps, and for how many of the jobs each is one between tokens."""
    borders = np.array([*chain.from_iterable([job._borders for job in jobs])])
    first = int(borders.min())
    # A copy: an array that is looked into cannot grow.
    moments = np.array(jobs[0]._steps[first : int(borders.max())])
    starts, lasts = borders[::2] - first, borders[1::2] - (first + 1)
    num = len(moments)
    changes = np.bincount(starts, minlength=num) - np.bincount(lasts, minlength=num)
    return np.diff(moments), np.cumsum(changes)[:-1].astype(np.float64)


def _between_parts(jobs: Sequence[TokenMoments]) -> tuple[Floats, Floats]:
    """Return the gaps of jobs that missed steps, and none for each row beyond one in a step."""
    gaps_s, weights = [], []
    for job in jobs:
        steps, borders = job._steps, job._borders
        if job._num_more:
            gaps_s.append(0.0)
            weights.append(float(job._num_more))
        if len(borders) > 2:
            ends_of_gaps = zip(borders[1:-1:2], borders[2::2], strict=True)
            gaps_s += [steps[start] - steps[end - 1] for end, start in ends_of_gaps]
            weights += [1.0] * (len(borders) // 2 - 1)
    return np.array(gaps_s), np.array(weights)
