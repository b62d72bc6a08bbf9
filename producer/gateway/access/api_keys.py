"""API keys at rest: made, listed, found and revoked; of a key itself only a digest is kept.

A key is `tb-<id>-<secret>`: its id finds the record, its secret opens it.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract import deployment_keys
from tokenbus.producer.contract.bounds import DEFAULT_PRIORITY

if TYPE_CHECKING:
    from redis.asyncio import Redis

_KEY = re.compile(r"tb-([0-9a-f]{16})-([A-Za-z0-9_-]{43})")
# A share's mark stands behind it in the names that the queue knows.
TENANT_PATTERN = r"[A-Za-z0-9_.:-]{1,60}"
ALL_PRIORITIES = (DEFAULT_PRIORITY, 0, 2)
# What a key may do at the board, each beside the others: look at it, read prompts and answers, act.
BOARD_ROLES = ("viewer", "reader", "operator")
# A revoked key is listed for so long.
_REVOKED_TTL_S = 30 * 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLimits:
    """How many requests and tokens a key has in a minute and in a month; None is no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_month: int | None = None
    tokens_per_month: int | None = None

    @property
    def is_open(self) -> bool:
        """Tell whether there is no limit at all."""
        return not any(getattr(self, name) is not None for name in LIMITS)


NO_LIMITS = KeyLimits()
LIMITS = (
    "requests_per_minute",
    "tokens_per_minute",
    "requests_per_month",
    "tokens_per_month",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A stored key: whose it is and what it may do; `digest` is that of the whole key.

    `roles` are what it may do at the board, of `BOARD_ROLES`: nothing without one.
    """

    key_id: str
    digest: str = field(repr=False)
    name: str = ""
    tenant: str
    weight: float = 1.0
    priorities: tuple[int, ...] = ALL_PRIORITIES
    pools: tuple[str, ...] = ()
    limits: KeyLimits = NO_LIMITS
    roles: tuple[str, ...] = ()
    created: int = 0
    revoked: int = 0

    def dump(self) -> dict[str, str]:
        """Return the fields that are stored."""
        return {
            "digest": self.digest,
            "name": self.name,
            "tenant": self.tenant,
            "weight": repr(self.weight),
            "priorities": json.dumps(self.priorities),
            "pools": json.dumps(self.pools),
            "limits": json.dumps({name: getattr(self.limits, name) for name in LIMITS}),
            "roles": json.dumps(self.roles),
            "created": str(self.created),
        }

    @classmethod
    def parse(cls, key_id: str, stored: dict[bytes, bytes]) -> ApiKey | None:
        """Read what `dump` wrote; None where there is nothing."""
        if b"digest" not in stored:
            return None
        told = {name.decode(): value.decode() for name, value in stored.items()}
        limits: dict[str, Any] = json.loads(told.get("limits", "{}"))
        return cls(
            key_id=key_id,
            digest=told["digest"],
            name=told.get("name", ""),
            tenant=told["tenant"],
            weight=float(told.get("weight", "1")),
            priorities=tuple(json.loads(told.get("priorities", "null")) or ALL_PRIORITIES),
            pools=tuple(json.loads(told.get("pools", "[]"))),
            limits=KeyLimits(**{name: limits.get(name) for name in LIMITS}),
            roles=tuple(json.loads(told.get("roles", "[]"))),
            created=int(told.get("created", 0)),
            revoked=int(told.get("revoked", 0)),
        )


def digest_of(key: str) -> str:
    """Return what is kept of a key, which is drawn from so many that nobody tries them."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


def id_of(key: str) -> str | None:
    """Return the id that a key names; None for what is none of our keys."""
    found = _KEY.fullmatch(key)
    return None if found is None else found[1]


class ApiKeys:
    """The keys of a deployment. Every method raises what a call on the server raises."""

    def __init__(self, redis: Redis) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis

    async def create(
        self,
        *,
        tenant: str = "",
        name: str = "",
        weight: float = 1.0,
        priorities: tuple[int, ...] = ALL_PRIORITIES,
        pools: tuple[str, ...] = (),
        limits: KeyLimits | None = None,
        roles: tuple[str, ...] = (),
    ) -> tuple[str, ApiKey]:
        """Make a key and return it, with its record; it is told this once.

        Without a tenant it has one of its own.
        """
        key_id = secrets.token_hex(8)
        key = f"tb-{key_id}-{secrets.token_urlsafe(32)}"
        record = ApiKey(
            key_id=key_id,
            digest=digest_of(key),
            name=name,
            tenant=tenant or f"key-{key_id}",
            weight=weight,
            priorities=priorities,
            pools=pools,
            limits=limits or NO_LIMITS,
            roles=roles,
            created=int(time.time()),
        )
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(deployment_keys.api_key(key_id), mapping=record.dump())
            pipe.sadd(deployment_keys.api_keys(), key_id)
            await pipe.execute()
        return key, record

    async def is_used(self) -> bool:
        """Tell whether a key was ever made."""
        return bool(await self._redis.exists(deployment_keys.api_keys()))

    async def find(self, key_id: str) -> ApiKey | None:
        """Return the record of a key, revoked or not."""
        stored = await self._redis.hgetall(deployment_keys.api_key(key_id))
        return ApiKey.parse(key_id, stored)

    async def records(self) -> list[ApiKey]:
        """Return all keys, the oldest first."""
        members = await self._redis.smembers(deployment_keys.api_keys())
        found = []
        for member in members:
            record = await self.find(member.decode())
            if record is not None:
                found.append(record)
        return sorted(found, key=lambda record: (record.created, record.key_id))

    async def revoke(self, key_id: str) -> ApiKey | None:
        """Revoke a key and return its record; None where there is none. Safe to repeat."""
        record = await self.find(key_id)
        if record is None:
            return None
        name = deployment_keys.api_key(key_id)
        async with self._redis.pipeline(transaction=True) as pipe:
            pipe.hsetnx(name, "revoked", int(time.time()))
            pipe.expire(name, _REVOKED_TTL_S)
            await pipe.execute()
        return record

    async def revoked(self, key_ids: list[str]) -> set[str]:
        """Return those of some keys that are not good any more."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for key_id in key_ids:
                pipe.hmget(deployment_keys.api_key(key_id), "digest", "revoked")
            replies = await pipe.execute()
        return {
            key_id
            for key_id, (digest, revoked) in zip(key_ids, replies, strict=True)
            if digest is None or revoked is not None
        }
