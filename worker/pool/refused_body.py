"""A refused body: the name that it asks for, and what of it may be kept."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.events import Event
from tokenbus.producer.contract.keys import JOB_ID_PATTERN, NAME_PATTERN, WIRE_VERSION

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Finish

_SECRET = re.compile(rb'"cache_secret"\s*:\s*"(?:\\.|[^"\\])*"?', re.DOTALL)
# The field in any other place or spelling, or letters that JSON escapes, which may spell it.
_MENTION = re.compile(rb"cache.?secret|\\u00[4-7]", re.IGNORECASE)
LEFT_OUT = b"(left out: it holds a secret)"


@dataclass(frozen=True, slots=True)
class RefusedBody:
    """Tenant and id of a body that is no job; empty where it names none that could be one."""

    job_id: str
    tenant: str
    version: int

    @classmethod
    def of(cls, body: bytes) -> RefusedBody:
        """Read a refused body, whatever it is."""
        wire = _object(body) or {}
        job_id = _matching(wire.get("id"), JOB_ID_PATTERN)
        tenant = _matching(wire.get("tenant", DEFAULT_TENANT), NAME_PATTERN)
        version = 1 if wire.get("v") == 1 else WIRE_VERSION
        return cls(job_id if tenant else "", tenant, version)

    @property
    def address(self) -> str:
        """Return the address it asks for, empty without one."""
        return JobAddress(self.job_id, self.tenant).text if self.job_id else ""

    def refusal(self, finish: Finish) -> str:
        """Return the event that tells listeners of the name; no log holds it."""
        event = Event(
            self.job_id, 0, 0, 1, 0, finish=finish, tenant=self.tenant, version=self.version
        )
        return json.dumps(event.dump(), separators=(",", ":"))


def without_secret(body: bytes) -> bytes:
    """Take the secret of a cache group out of a body that is to be kept.

    A body that names one anywhere but in its field is not kept: a mistake that gets a request
    refused may be that it lies elsewhere.
    """
    wire = _object(body)
    if wire is None:
        kept = _SECRET.sub(b"", body)
    elif "cache_secret" in wire:
        del wire["cache_secret"]
        kept = json.dumps(wire).encode()
    else:
        kept = body
    return LEFT_OUT if _MENTION.search(kept) else kept


def _object(body: bytes) -> dict[str, Any] | None:
    try:
        wire = json.loads(body)
    except (ValueError, RecursionError):
        return None
    return wire if isinstance(wire, dict) else None


def _matching(value: object, pattern: str) -> str:
    found = isinstance(value, str) and re.fullmatch(pattern, value) is not None
    return str(value) if found else ""
