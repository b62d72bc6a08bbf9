"""The address of a job: its tenant and its id, as keys, channels and lane entries carry them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

from tokenbus.producer.errors import RequestInvalid

DEFAULT_TENANT = "default"
_MARK = "@"
# A share of a tenant, as a gateway names it: two hexadecimal digits behind the tenant.
_SHARE = re.compile(r"(.+)/[0-9a-f]{2}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class JobAddress:
    """Names one job of a pool: ids belong to tenants, so two tenants may use the same.

    As text it is the id alone for the tenant `default`, `<id>@<tenant>` for any other. No id holds
    an `@`, so the first one ends it; a shard's `s<n>-` stays in front. Scripts take the text as it
    is. What is no id has an address that no job has.
    """

    job_id: str
    tenant: str = DEFAULT_TENANT

    @property
    def text(self) -> str:
        """Return the address as it stands in keys."""
        if _MARK in self.job_id or not self.tenant:
            return f"{_MARK}{self.job_id}"
        return self.job_id if self.is_plain else f"{self.job_id}{_MARK}{self.tenant}"

    @property
    def is_plain(self) -> bool:
        """Tell whether the address is the id alone."""
        return self.tenant == DEFAULT_TENANT

    @classmethod
    def parse(cls, text: str) -> JobAddress:
        """Split an address."""
        return _parsed(text)


def share_name(tenant: str, share: str) -> str:
    """Return the tenant of the queue that a share of a tenant is; without a share, the tenant."""
    return f"{tenant}/{share}" if share else tenant


@lru_cache(maxsize=4096)
def whole_tenant(tenant: str) -> str:
    """Return the tenant whose share one of the queue is; what is none is whole."""
    found = _SHARE.fullmatch(tenant)
    return tenant if found is None else found[1]


def check_name(field: str, text: object) -> None:
    """Check the name of a job or tenant that somebody asks for. Raises: RequestInvalid."""
    if not isinstance(text, str) or any("\ud800" <= each <= "\udfff" for each in text):
        raise RequestInvalid(field, f"{text!a} is no text that UTF-8 carries")


@lru_cache(maxsize=4096)
def _parsed(text: str) -> JobAddress:
    job_id, _, tenant = text.partition(_MARK)
    return JobAddress(job_id, tenant or DEFAULT_TENANT)
