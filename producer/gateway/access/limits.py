"""Limits of a key: requests and tokens in a minute and in a month, counted for all doors at once.

A request is counted when it comes, with the tokens that it may come to. Its job is noted beside the
counters, and the door that sees the job's end first gives back what the job did not use.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.gateway.access.caller import Caller

MINUTE_S = 60
MONTH_TTL_S = 62 * 86_400
# How long a job is left alone before somebody looks whether it has ended.
LOOK_S = 5.0
# KEYS: the notes, then counters of tokens. ARGV: a note, what to add, the TTL of a counter whose
# window is gone: it would stay for ever.
_REFUND = """#!lua flags=allow-oom
if redis.call('ZREM', KEYS[1], ARGV[1]) == 0 then
  return 0
end
for i = 2, #KEYS do
  redis.call('INCRBY', KEYS[i], ARGV[2])
  redis.call('EXPIRE', KEYS[i], ARGV[3], 'NX')
end
return 1
"""


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was counted for one job: tokens, the counters that have them, and where the job is."""

    num_tokens: int
    counters: tuple[str, ...]
    pool: str
    address: str

    def dump(self) -> str:
        """Return the note of it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, note: bytes) -> Self:
        """Read a note."""
        told = json.loads(note)
        return cls(told["num_tokens"], tuple(told["counters"]), told["pool"], told["address"])


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter: its key, what it counts up to, how much it takes now, and when it is new."""

    name: str
    limit: int
    amount: int
    ttl_s: int
    retry_s: int
    told: str

    @property
    def is_of_tokens(self) -> bool:
        """Tell whether tokens are counted, and not requests."""
        return ":tokens:" in self.name


class KeyUse:
    """Counts what keys use. Every method raises what a call on the server raises."""

    def __init__(self, redis: Redis) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis

    async def admit(
        self, caller: Caller, num_tokens: int, pool: str, address: str
    ) -> Reservation | None:
        """Count the request of a job and its tokens; None where the key has no limit.

        Raises: ApiError 429 with the time at which the limit is a new one.
        """
        if caller.key_id is None or caller.limits.is_open:
            return None
        counters = counters_of(caller, num_tokens, time.time())
        async with self._redis.pipeline(transaction=True) as pipe:
            for counter in counters:
                pipe.incrby(counter.name, counter.amount)
                pipe.expire(counter.name, counter.ttl_s, nx=True)
            replies = (await pipe.execute())[::2]
        full = [
            counter
            for counter, count in zip(counters, replies, strict=True)
            if count > counter.limit
        ]
        if full:
            await self._add({counter.name: -counter.amount for counter in counters})
            raise limit_reached(full)
        names = [counter.name for counter in counters if counter.is_of_tokens]
        return Reservation(num_tokens, tuple(names), pool, address) if names else None

    async def refund(self, reservation: Reservation) -> None:
        """Give back the tokens of what became no job."""
        await self._add(dict.fromkeys(reservation.counters, -reservation.num_tokens))

    async def note(self, reservation: Reservation) -> None:
        """Note a job whose end gives back what it did not use."""
        due_ms = (time.time() + LOOK_S) * 1000
        await self._redis.zadd(deployment_keys.open_use(), {reservation.dump(): due_ms})

    async def refund_unused(self, reservation: Reservation, num_used: int) -> None:
        """Give back what a job has not used: once, however many doors saw its end."""
        await self._redis.eval(
            _REFUND,
            1 + len(reservation.counters),
            deployment_keys.open_use(),
            *reservation.counters,
            *(reservation.dump(), num_used - reservation.num_tokens, MONTH_TTL_S),
        )

    async def due(self, limit: int) -> list[Reservation]:
        """Return jobs that nobody has looked after for a while; other doors leave them alone."""
        key, now_ms = deployment_keys.open_use(), time.time() * 1000
        notes = await self._redis.zrangebyscore(key, "-inf", now_ms, 0, limit)
        if notes:
            later = dict.fromkeys(notes, now_ms + LOOK_S * 1000)
            await self._redis.zadd(key, later, xx=True)
        return [Reservation.parse(note) for note in notes]

    async def _add(self, amounts: dict[str, int]) -> None:
        async with self._redis.pipeline(transaction=True) as pipe:
            for name, amount in amounts.items():
                pipe.incrby(name, amount)
                # Of a window that is gone the counter would stay for ever.
                pipe.expire(name, MONTH_TTL_S, nx=True)
            await pipe.execute()


def limit_reached(full: Sequence[Counter]) -> ApiError:
    """Return the error of a request for which these counters have no room.

    One that is too large for a counter that is new is not told when to come back.
    """
    code = "rate_limit_exceeded"
    for each in full:
        if each.amount > each.limit:
            told = f"This may come to {each.amount}, and the key has {each.limit} {each.told}."
            return ApiError(429, told, code=code)
    worst = max(full, key=lambda counter: counter.retry_s)
    told = f"The key's limit of {worst.limit} {worst.told} is reached."
    return ApiError(429, told, code=code, headers={"Retry-After": str(worst.retry_s)})


def counters_of(caller: Caller, num_tokens: int, now: float) -> list[Counter]:
    """Return the counters of a caller's key that a request of so many tokens is counted on."""
    assert caller.key_id is not None
    limits, minute = caller.limits, int(now // MINUTE_S)
    day = time.gmtime(now)
    month = f"{day.tm_year:04d}-{day.tm_mon:02d}"
    windows = (
        ("minute", str(minute), 2 * MINUTE_S, MINUTE_S - int(now % MINUTE_S)),
        ("month", month, MONTH_TTL_S, _seconds_to_month(now, day)),
    )
    found = []
    for period, window, ttl_s, retry_s in windows:
        for kind, amount in (("requests", 1), ("tokens", num_tokens)):
            limit = getattr(limits, f"{kind}_per_{period}")
            if limit is not None:
                name = deployment_keys.key_use(caller.key_id, kind, window)
                told = f"{kind} per {period}"
                found.append(Counter(name, limit, amount, ttl_s, max(1, retry_s), told))
    return found


def _seconds_to_month(now: float, day: time.struct_time) -> int:
    """Return the seconds until the next month, by days of 86,400 of them."""
    length = [31, 29 if _is_leap(day.tm_year) else 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31]
    days = length[day.tm_mon - 1] - day.tm_mday
    return int(days * 86_400 + 86_400 - now % 86_400)


def _is_leap(year: int) -> bool:
    return year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
