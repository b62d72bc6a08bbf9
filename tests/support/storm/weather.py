"""What a random schedule may meet, by its seed."""

from __future__ import annotations

from enum import IntFlag


class Weather(IntFlag):
    """What a schedule may meet beside a faulty network, dying and pausing workers and readers."""

    CALM = 0
    RESTARTS = 1
    AGES = 2
    ROLLBACKS = 4


CLIMATES = (
    Weather.CALM,
    Weather.RESTARTS,
    Weather.RESTARTS | Weather.AGES,
    Weather.RESTARTS | Weather.ROLLBACKS,
    Weather.RESTARTS | Weather.AGES | Weather.ROLLBACKS,
)
