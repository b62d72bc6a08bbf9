"""The id of a job that a gateway has submitted: it tells every gateway what it has to know of it.

`s<shard>-` as of every job's id, then hexadecimal digits: six of the pool, twelve of the owner, two
of the fairness share, eight of the second of its creation and 24 that nobody can guess; where keys
are off, a dot and the tenant, unless that is `default`.
"""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Self

_PATTERN = re.compile(
    r"s(?P<shard>\d{1,3})-(?P<pool>[0-9a-f]{6})(?P<owner>[0-9a-f]{12})(?P<share>[0-9a-f]{2})"
    r"(?P<created>[0-9a-f]{8})(?P<secret>[0-9a-f]{24})(?:\.(?P<tenant>[A-Za-z0-9_-]{1,32}))?"
)
_NO_SHARE = "00"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobName:
    """The parts of an id; `created` is in seconds since 1970, `share` empty without one."""

    shard: int
    pool_tag: str
    owner: str
    share: str = ""
    created: int
    secret: str
    tenant: str = ""

    @classmethod
    def draw(
        cls, *, num_shards: int, pool_tag: str, owner: str, share: str, created: int, tenant: str
    ) -> Self:
        """Draw the id of a new job."""
        return cls(
            shard=secrets.randbelow(num_shards),
            pool_tag=pool_tag,
            owner=owner,
            share=share,
            created=created,
            secret=secrets.token_hex(12),
            tenant=tenant,
        )

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """Read an id; None for one that no gateway has drawn."""
        found = _PATTERN.fullmatch(text)
        if found is None:
            return None
        return cls(
            shard=int(found["shard"]),
            pool_tag=found["pool"],
            owner=found["owner"],
            share="" if found["share"] == _NO_SHARE else found["share"],
            created=int(found["created"], 16),
            secret=found["secret"],
            tenant=found["tenant"] or "",
        )

    @property
    def text(self) -> str:
        """Return the id."""
        tail = f".{self.tenant}" if self.tenant else ""
        return (
            f"s{self.shard}-{self.pool_tag}{self.owner}{self.share or _NO_SHARE}"
            f"{self.created:08x}{self.secret}{tail}"
        )
