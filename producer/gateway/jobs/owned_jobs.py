"""The jobs of an owner: those of one API key, in the shares of all its users."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.client.job_list import LISTED_STATES, MAX_LISTED, list_jobs
from tokenbus.producer.gateway.wire.job_name import JobName

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.client.job_list import JobList
    from tokenbus.producer.scripts.replies import JobState


async def owned_jobs(
    client: AsyncClient,
    owner: str,
    tenant: str | None,
    *,
    states: Sequence[JobState] = LISTED_STATES,
    without: Container[str] = (),
) -> JobList:
    """List the jobs of an owner in a pool, 1,000 at most, but for some ids.

    `tenant` is the owner's, its shares belong to it; None are all, where there are no keys.
    Raises: what a call on the server raises.
    """

    def is_owned(job_id: str) -> bool:
        name = JobName.parse(job_id)
        return name is not None and name.owner == owner and job_id not in without

    return await list_jobs(
        client.scripts,
        tenant=tenant,
        states=states,
        limit=MAX_LISTED,
        with_shares=True,
        is_wanted=is_owned,
    )
