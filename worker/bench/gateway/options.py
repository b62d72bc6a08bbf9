"""Options of a run of `tokenbus bench gateway`; they travel to its client processes as they are."""

from __future__ import annotations

import math
from pathlib import Path

import msgspec

from tokenbus.worker.errors import SettingsInvalid

ROUTES = ("chat", "completions")
# Streams that are opened a second unless it is said, and tokens of each one's prompt.
_OPENED_PER_S = 100.0
PROMPT_TOKENS = 8

_BOUNDS: dict[str, tuple[float, float]] = {
    "streams": (1, 100_000),
    "tokens_per_s": (0.01, 1e5),
    "duration_s": (0.5, 3600),
    "warm_up_s": (0, 600),
    "ramp_s": (0, 3600),
    "drain_s": (1, 3600),
    "workers": (1, 64),
    "clients": (1, 64),
    "native_readers": (1, 64),
    "native_share": (0, 100),
}


class GatewayBenchOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Streams, what reads them, and the report; times in s.

    `native_share` is the part of the jobs, in percent, that the native client reads too. With
    `idle` the jobs wait in the queue for `duration_s` and run then.
    """

    streams: int = 250
    tokens_per_s: float = 20.0
    duration_s: float = 20.0
    warm_up_s: float = 3.0
    ramp_s: float | None = None
    drain_s: float = 60.0
    route: str = "chat"
    idle: bool = False
    workers: int = 1
    clients: int = 1
    native_readers: int = 1
    native_share: float = 100.0
    own_core: bool = False
    redis: str = "embedded://"
    seed: int = 0
    json: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work by the option's name.

        Raises: SettingsInvalid.
        """
        for name, (low, high) in _BOUNDS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag = f"--{name.replace('_', '-')}"
                raise SettingsInvalid(f"{flag}: {value:g} is outside {low:g}…{high:g}")
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise SettingsInvalid(f"--json: the folder of {self.json} does not exist")

    @property
    def opening_s(self) -> float:
        """Return the time over which the streams are opened."""
        return self.streams / _OPENED_PER_S if self.ramp_s is None else self.ramp_s

    @property
    def until_window_s(self) -> float:
        """Return the time from the first request to what is measured, if none opens late."""
        return self.opening_s + self.warm_up_s

    @property
    def max_tokens(self) -> int:
        """Return the tokens of a stream: none ends before the window does."""
        if self.idle:
            return 2
        return math.ceil(self.tokens_per_s * (self.until_window_s + self.duration_s)) + 1

    @property
    def seeds(self) -> range:
        """Return the seed of each stream's job."""
        return range(self.seed + 1, self.seed + 1 + self.streams)

    @property
    def num_native(self) -> int:
        """Return how many jobs the native client reads too."""
        return 0 if self.idle else round(self.streams * self.native_share / 100)
