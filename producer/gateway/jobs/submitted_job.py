"""A job that was submitted through a door, and the way to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.gateway.access.limits import Reservation


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmittedJob:
    """A job of a caller: its id and tenant, its pool, and the client that reaches it.

    `created` is the second of its creation; `place` where it stood when it was accepted, None where
    it was found by its id. `asked_at` is when that began, by this process's monotonic clock; what
    is not known of a job that was found is empty. `reservation` is what was counted for it on the
    limits of its key.
    """

    job_id: str
    tenant: str
    pool: str
    client: AsyncClient
    created: int
    place: Job | None = None
    model: str = ""
    priority: int = 1
    asked_at: float = 0.0
    reservation: Reservation | None = None
