"""The cache scope: whose jobs may share cached pages, and know by it that others began alike.

A tenant's jobs share with each other. A `cache_group` sets some of them apart; it is shared between
tenants only by those who know its secret, or whom the owner of the pool lists.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from tokenbus.producer.contract.schema import StoredRequest

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from tokenbus.producer.contract.schema import JobRequest

    # The owner's list: group -> the tenants that share it without a secret.
    CacheGroups = Mapping[str, Collection[str]]

NO_GROUPS: CacheGroups = {}


def cache_scope(request: JobRequest, groups: CacheGroups = NO_GROUPS) -> str:
    """Name the scope of a request; two scopes are the same only where pages may be shared.

    No tenant, group or key holds a line break, so that no two ways to a name meet. A job of wire
    version 1 never shares between tenants: its sender was promised no secret.
    """
    group, tenant = request.cache_group, request.tenant
    if group is None:
        return f"tenant\n{tenant}"
    key = cache_key(request)
    if key is not None:
        return f"secret\n{key}"
    if request.v > 1 and tenant in groups.get(group, ()):
        return f"list\n{group}"
    return f"tenant\n{tenant}\n{group}"


def cache_key(request: JobRequest) -> str | None:
    """Return what is kept in place of a request's secret: a digest of group and secret."""
    if isinstance(request, StoredRequest):
        return request.cache_key
    if request.cache_secret is None:
        return None
    told = f"{request.cache_group}\n{request.cache_secret.get_secret_value()}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]
