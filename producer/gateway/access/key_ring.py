"""The key ring: from the key of a request to its caller."""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING

from pydantic import SecretStr

from tokenbus.producer.gateway.access.api_keys import BOARD_ROLES, ApiKey, ApiKeys, digest_of, id_of
from tokenbus.producer.gateway.access.caller import Caller, tag_of
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis.asyncio import Redis

_BEARER = "bearer "
# What the ids of keys begin with that were given to the process.
_GIVEN = "given-"
# How long a record that was read is believed; a revoked key opens nothing after it.
BELIEVED_S = 1.0
_MAX_BELIEVED = 10_000
# Compared with where there is no record, so that an unknown id takes as long as a wrong secret.
_NO_DIGEST = "0" * 64


class KeyRing:
    """Knows the keys that are given to the process and those that are stored."""

    def __init__(
        self,
        redis: Redis,
        given: Sequence[SecretStr],
        *,
        given_roles: Sequence[str] = (),
        is_on: bool,
    ) -> None:
        self._stored = ApiKeys(redis)
        self._given = [digest_of(key.get_secret_value()) for key in given]
        self._given_roles = frozenset(given_roles)
        self.is_on = is_on
        self._believed: dict[str, tuple[float, ApiKey | None]] = {}

    async def caller_of(self, authorization: str | None) -> Caller:
        """Return who asks. Raises: ApiError 401; what a call on the server raises."""
        if not self.is_on:
            return Caller(roles=frozenset(BOARD_ROLES))
        given = authorization or ""
        if not given.lower().startswith(_BEARER):
            raise no_key()
        key = given[len(_BEARER) :].strip()
        digest = digest_of(key)
        key_id = id_of(key)
        if key_id is not None:
            record = await self._record(key_id)
            known = _NO_DIGEST if record is None else record.digest
            if hmac.compare_digest(digest, known) and record is not None:
                if record.revoked:
                    raise wrong_key()
                return caller_of(record)
        # All are compared, whichever it is.
        matches = [hmac.compare_digest(digest, each) for each in self._given]
        if not any(matches):
            raise wrong_key()
        owner = tag_of(f"given\n{digest}", 12)
        return Caller(
            key_id=f"{_GIVEN}{owner}",
            cache_group=owner,
            cache_secret=_cache_secret(digest),
            id_prefix=owner,
            roles=self._given_roles,
        )

    async def revoked(self, key_ids: Iterable[str]) -> set[str]:
        """Return those of some keys that are not good any more.

        Raises: what a call on the server raises.
        """
        stored = [key_id for key_id in key_ids if not key_id.startswith(_GIVEN)]
        found = await self._stored.revoked(stored) if stored else set[str]()
        for key_id in found:
            # From here on it opens nothing at this door.
            self._believed.pop(key_id, None)
        return found

    async def check(self, caller: Caller) -> None:
        """Check that a caller's key is good still, by what is stored now.

        Raises: ApiError 401; what a call on the server raises.
        """
        if caller.key_id is not None and await self.revoked([caller.key_id]):
            raise wrong_key()

    async def check_lately(self, caller: Caller) -> None:
        """Check the same by what was read within the last second.

        Raises: as `check`.
        """
        key_id = stored_key_of(caller)
        if key_id is not None:
            record = await self._record(key_id)
            if record is None or record.revoked:
                raise wrong_key()

    async def _record(self, key_id: str) -> ApiKey | None:
        now = time.monotonic()
        found = self._believed.get(key_id)
        if found is not None and now - found[0] < BELIEVED_S:
            return found[1]
        record = await self._stored.find(key_id)
        if len(self._believed) >= _MAX_BELIEVED:
            self._believed.clear()
        self._believed[key_id] = (now, record)
        return record


def caller_of(record: ApiKey) -> Caller:
    """Return who asks with a stored key."""
    owner = tag_of(f"stored\n{record.key_id}", 12)
    return Caller(
        tenant=record.tenant,
        key_id=record.key_id,
        weight=record.weight,
        priorities=record.priorities,
        models=frozenset(record.pools) if record.pools else None,
        cache_group=owner,
        cache_secret=_cache_secret(record.digest),
        id_prefix=owner,
        limits=record.limits,
        roles=frozenset(record.roles),
    )


def stored_key_of(caller: Caller) -> str | None:
    """Return the id of the stored key that a caller has; None where it has none, or a given one."""
    is_given = caller.key_id is None or caller.key_id.startswith(_GIVEN)
    return None if is_given else caller.key_id


def no_key() -> ApiError:
    """Return the error of a request without a key."""
    return _unauthorized("No API key was given: send the header 'Authorization: Bearer KEY'.")


def wrong_key() -> ApiError:
    """Return the error of a key that opens nothing."""
    return _unauthorized("The API key is not known, or was revoked.")


def _unauthorized(message: str) -> ApiError:
    headers = {"WWW-Authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def _cache_secret(digest: str) -> SecretStr:
    """Return the secret of a key's cache group, which its digest alone leads to."""
    return SecretStr(digest_of(f"cache\n{digest}"))
