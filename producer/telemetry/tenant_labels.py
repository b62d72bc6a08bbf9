"""Tenants as labels of metrics: as many as were allowed for, and one name for all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

OTHER = "other"


class TenantLabels:
    """Gives the first `limit` tenants that come labels of their own, and `named` ones always.

    A label is kept for the life of the process, so that a counter never changes its owner.
    """

    def __init__(self, limit: int, named: Iterable[str] = ()) -> None:
        self._left = limit
        self._known = {tenant: tenant for tenant in named}

    def of(self, tenant: str) -> str:
        """Return the label of a tenant."""
        label = self._known.get(tenant)
        if label is None:
            if self._left <= 0:
                return OTHER
            self._left -= 1
            label = self._known[tenant] = tenant
        return label
