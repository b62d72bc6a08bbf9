"""Evidence: what speaks against a job that was on board when engines or workers died."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# A place is passed by so many tokens of each choice: a step or two may have been under way at the
# crash, and its tokens lost with it. The same number stands in evidence.lua.
MARGIN_TOKENS = 16
# In a record of an earlier release, from this many crashes on a job runs alone.
ALONE_ATTEMPTS = 2


@dataclass(frozen=True, slots=True)
class Evidence:
    """What a record says against its job.

    `ride` is with how many suspects at most it may be on one worker, itself counted; 0: it is none.
    `place` is the index at which it was at its last crash, `since` the tokens since that start.
    `is_open`: it has not passed that place since. `is_alone`: it is to run with nothing beside it.
    """

    ride: int
    place: int
    since: int
    is_open: bool
    is_alone: bool

    @classmethod
    def parse(cls, packed: str, attempts: int) -> Evidence | None:
        """Read a record's text, and of an earlier release its attempts; None for nothing at all."""
        numbers = [int(number) for number in packed.split()]
        ride, blame, strikes, _, place, since, *_ = numbers or [0] * 7
        is_alone = attempts >= ALONE_ATTEMPTS
        if is_alone:
            ride = 1
        if not (ride or blame or strikes or attempts):
            return None
        return cls(ride, place, since, is_open=True, is_alone=is_alone)

    @property
    def has_passed_alone(self) -> bool:
        """Tell whether it has run alone and passed, and now rides as the one suspect on board."""
        return self.ride == 1 and not self.is_alone

    def is_passed(self, start: int, last: int, num_choices: int) -> bool:
        """Tell whether a job that went on after index `start` is now, at `last`, past its place.

        Past the index, and past as many tokens since the start: what kills after so many tokens of
        each run is at another index each time.
        """
        margin = MARGIN_TOKENS * num_choices
        return last > self.place + margin and last - start > self.since + margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Crash:
    """What is known of the crash for which a job is handed back.

    `engine`: one died before its worker's eyes with the job on board, at index `place`, `since`
    tokens after its start there. `worker`: one vanished that had begun it. `log`: its log could not
    be continued. `num_suspected` jobs are blamed, `num_beside` others on board are not;
    `is_beside`: this is one of those. With `is_sound` unset other jobs have died alone on that
    worker and none made a token since, so that its own fault is as likely.
    """

    cause: Literal["engine", "worker", "log"]
    place: int = 0
    since: int = 0
    num_suspected: int = 1
    num_beside: int = 0
    is_beside: bool = False
    is_sound: bool = True


# What a job has passed on the worker that hands it back: nothing, its place, or its place alone.
Passed = Literal["", "all", "alone"]


@dataclass(frozen=True, slots=True)
class Crowd:
    """What a worker tells of its held jobs when it pulls.

    How many are suspects, the least of their rides (0: none), and how many have not passed their
    place since their last crash.
    """

    num_suspects: int = 0
    least_ride: int = 0
    num_open: int = 0
