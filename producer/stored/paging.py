"""Pages of lists that are kept as sorted sets of ids, by creation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

MAX_PAGE = 10_000
# Ids that are looked at in one call.
_SLICE = 256


class _Named(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_Named)


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """Some of a list; `has_more` tells that others follow."""

    items: list[T]
    has_more: bool

    def wire(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the list object of the API, with its items as they are spelled."""
        return {
            "object": "list",
            "data": items,
            "first_id": self.items[0].id if self.items else None,
            "last_id": self.items[-1].id if self.items else None,
            "has_more": self.has_more,
        }


async def page_of(
    redis: Any,
    key: str,
    read: Callable[[list[str]], Awaitable[list[T]]],
    after: str | None,
    limit: int,
    *,
    ascending: bool = False,
) -> Page[T]:
    """Return the items behind one id, of those ids that `read` knows; nothing behind an unknown.

    `read` returns the items of ids in their order, and leaves out what is none.
    """
    start = 0
    if after is not None:
        rank = await (redis.zrank if ascending else redis.zrevrank)(key, after)
        if rank is None:
            return Page([], has_more=False)
        start = int(rank) + 1
    found: list[T] = []
    while len(found) <= limit:
        command = redis.zrange if ascending else redis.zrevrange
        ids = await command(key, start, start + _SLICE - 1)
        if not ids:
            break
        found += await read([each.decode() for each in ids])
        start += len(ids)
    return Page(found[:limit], has_more=len(found) > limit)


def slice_of(items: list[dict[str, Any]], after: str | None, limit: int) -> dict[str, Any]:
    """Return the list object of the API for items that are all at hand."""
    if after is not None:
        places = [number for number, item in enumerate(items) if item.get("id") == after]
        items = items[places[0] + 1 :] if places else []
    told = items[:limit]
    return {
        "object": "list",
        "data": told,
        "first_id": told[0].get("id") if told else None,
        "last_id": told[-1].get("id") if told else None,
        "has_more": len(items) > limit,
    }
