"""The key ring: from the key of a request to its caller."""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from tokenbus.producer.gateway.access.caller import Caller, tag_of
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr
    from redis.asyncio import Redis

_BEARER = "bearer "


class KeyRing:
    """Knows the keys that are given to the process and those that are stored."""

    def __init__(self, redis: Redis, given: Sequence[SecretStr], *, is_on: bool) -> None:
        self._redis = redis
        self._given = [_digest(key.get_secret_value()) for key in given]
        self.is_on = is_on

    async def caller_of(self, authorization: str | None) -> Caller:
        """Return who asks. Raises: ApiError 401."""
        if not self.is_on:
            return Caller()
        given = authorization or ""
        if not given.lower().startswith(_BEARER):
            raise ApiError(
                401,
                "No API key was given: send the header 'Authorization: Bearer KEY'.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        digest = _digest(given[len(_BEARER) :].strip())
        # All are compared, whichever it is.
        matches = [hmac.compare_digest(digest, each) for each in self._given]
        if not any(matches):
            raise wrong_key()
        owner = tag_of(f"given\n{digest}", 12)
        return Caller(key_id=f"given-{owner}", cache_group=owner, id_prefix=owner)


def wrong_key() -> ApiError:
    """Return the error of a key that opens nothing."""
    return ApiError(
        401,
        "The API key is not known, or was revoked.",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
