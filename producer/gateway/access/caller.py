"""The caller: in whose name a request is made, and what it may do."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from tokenbus.producer.contract.address import DEFAULT_TENANT, share_name
from tokenbus.producer.contract.bounds import DEFAULT_PRIORITY
from tokenbus.producer.gateway.access.api_keys import NO_LIMITS, KeyLimits

if TYPE_CHECKING:
    from pydantic import SecretStr

# Owner of what was asked for without a key.
NO_OWNER = "0" * 12
# Names that may stand in a job's id, where they are the tenant.
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,32}")


def tag_of(text: str, num_digits: int) -> str:
    """Return hexadecimal digits that stand for a text and do not tell it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:num_digits]


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who asks, by the key of the request.

    tenant: whose share of the pools is used, and who is told of in metrics.
    key_id: the API key; None where keys are off.
    share: which part of the tenant's share, two hexadecimal digits; empty without one.
    weight: of the tenant.
    priorities: those that may be asked for, the first being the default.
    models: names of the pools that may be asked for; None are all.
    cache_group: whose cached prompts are shared; None are those of the tenant.
    cache_secret: without it the group is none; it is the same for all of a key's shares.
    id_prefix: owner of all that is asked for, 12 hexadecimal digits: what begins with another one,
        behind its shard and pool, is as unknown as what never was.
    limits: of the key.
    roles: what it may do at the board, of `BOARD_ROLES`; all of it where keys are off.
    """

    tenant: str = DEFAULT_TENANT
    key_id: str | None = None
    share: str = ""
    weight: float = 1.0
    priorities: tuple[int, ...] = (DEFAULT_PRIORITY, 0, 2)
    models: frozenset[str] | None = None
    cache_group: str | None = None
    cache_secret: SecretStr | None = field(default=None, repr=False)
    id_prefix: str = NO_OWNER
    limits: KeyLimits = NO_LIMITS
    roles: frozenset[str] = frozenset()

    def for_user(self, user: str | None) -> Self:
        """Return the caller in the name of one of its users.

        A user has a share inside the key's tenant, one of 255; the tenant of his own where keys
        are off.
        """
        if not user:
            return self
        if self.key_id is None:
            tenant = user if _TENANT.fullmatch(user) else f"u-{tag_of(user, 24)}"
            return replace(self, tenant=tenant)
        share = 1 + int(tag_of(f"{self.key_id}\n{user}", 8), 16) % 255
        return replace(self, share=f"{share:02x}")

    @property
    def job_tenant(self) -> str:
        """Return the tenant as the queue knows it."""
        return share_name(self.tenant, self.share)

    def cache_fields(self, cache_key: str | None) -> dict[str, Any]:
        """Return whose cached prompts a job shares: the key's, or those of a part of it."""
        if self.cache_group is None and cache_key is None:
            return {}
        group = self.cache_group or "door"
        if cache_key is not None:
            group = f"{group}-{tag_of(cache_key, 24)}"
        if self.cache_secret is None:
            return {"cache_group": group}
        return {"cache_group": group, "cache_secret": self.cache_secret}

    def may_use(self, pool: str) -> bool:
        """Tell whether the caller may ask for a pool."""
        return self.models is None or pool in self.models
