"""The address of a job: its tenant and its id, as keys, channels and lane entries carry them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from tokenbus.producer.errors import RequestInvalid

DEFAULT_TENANT = "default"
_MARK = "@"


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


def check_name(field: str, text: object) -> None:
    """Check the name of a job or tenant that somebody asks for. Raises: RequestInvalid."""
    if not isinstance(text, str) or any("\ud800" <= each <= "\udfff" for each in text):
        raise RequestInvalid(field, f"{text!a} is no text that UTF-8 carries")


@lru_cache(maxsize=4096)
def _parsed(text: str) -> JobAddress:
    job_id, _, tenant = text.partition(_MARK)
    return JobAddress(job_id, tenant or DEFAULT_TENANT)
