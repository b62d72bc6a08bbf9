"""Actors that fall asleep over an answer, for moments or for longer than results are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from storm.actor import Actor
    from storm.network import Network

# How many steps the others have before an oversleeper's answer is older than all results.
DREAM_STEPS = 150
# Calls whose answers begin a chain of further calls.
_BEGINNINGS = ("cancel", "tick", "scan")


class Sleepers:
    """Who sleeps under one schedule; `actors` lists all that may, `age` lets results expire."""

    def __init__(
        self,
        network: Network,
        chance: random.Random,
        actors: Callable[[], list[Actor]],
        age: Callable[[], None],
    ) -> None:
        self._network = network
        self._chance = chance
        self._actors = actors
        self._age = age
        self._dreamer: Actor | None = None
        self._steps_left = 0
        self._is_late = False

    @property
    def is_dreaming(self) -> bool:
        """Tell whether somebody oversleeps."""
        return self._dreamer is not None

    def fall_asleep(self, actor: Actor, *, answered: bool = False) -> None:
        """Let an actor sleep; what it has sent is carried out or lost meanwhile."""
        self._network.note(f"{actor.name} sleeps")
        self._network.answer_early([actor], surely=answered)
        actor.is_paused = True

    def oversleep(self) -> None:
        """Let the next to begin a chain of calls sleep until nobody remembers what it was about."""
        self._is_late = True

    def _doze_off(self) -> None:
        beginners = [
            call.actor
            for call in self._network.pending
            if call.is_on_its_way and call.name in _BEGINNINGS and not call.actor.is_paused
        ]
        if beginners and self._dreamer is None:
            self._is_late = False
            self._steps_left = DREAM_STEPS
            # A canceller comes last, and ticks are many.
            self._dreamer = beginners[-1]
            self.fall_asleep(self._dreamer, answered=True)

    def step(self) -> None:
        """Count one step of the schedule; an oversleeper wakes up to another time."""
        if self._is_late:
            self._doze_off()
        if self._dreamer is not None:
            self._steps_left -= 1
            if self._steps_left == 0:
                self._age()
                self.wake_all()

    def wake(self) -> None:
        """Wake everybody but an oversleeper."""
        for actor in self._actors():
            actor.is_paused = actor is self._dreamer

    def wake_all(self) -> None:
        """Wake everybody."""
        self._dreamer = None
        self.wake()
