"""The door of jobs: a caller's requests become jobs of the queue, and ids lead back to them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress, share_name
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.jobs.job_use import JobUse
from tokenbus.producer.gateway.jobs.stream_form import job_id_of
from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
from tokenbus.producer.gateway.pools.served_models import pool_tag
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found
from tokenbus.producer.gateway.wire.job_name import JobName
from tokenbus.producer.gateway.wire.refusals import api_error, failed, unreachable
from tokenbus.producer.server.cluster import NUM_SHARDS, ClusterRedis

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenbus.producer.client.async_client import Job
    from tokenbus.producer.gateway.access.caller import Caller
    from tokenbus.producer.gateway.access.key_ring import KeyRing
    from tokenbus.producer.gateway.access.limits import KeyUse, Reservation
    from tokenbus.producer.gateway.access.shares import Shares
    from tokenbus.producer.gateway.pools.served_models import ServedModels, ServedPool
    from tokenbus.producer.telemetry.gateway_metrics import GatewayMetrics

MAX_IDEMPOTENCY_KEY = 200


class JobDoor:
    """Submits jobs in the name of callers and finds them again, from any process."""

    def __init__(
        self,
        models: ServedModels,
        keys: KeyRing,
        key_use: KeyUse,
        shares: Shares,
        metrics: GatewayMetrics,
    ) -> None:
        self._models = models
        self._keys = keys
        self._key_use = key_use
        self.use = JobUse(models, key_use)
        self._shares = shares
        self._metrics = metrics

    async def submit(
        self,
        caller: Caller,
        served: ServedPool,
        fields: Mapping[str, Any],
        *,
        cache_key: str | None = None,
        idempotency_key: str | None = None,
        ticket: int = 0,
        names: Mapping[str, str] | None = None,
    ) -> SubmittedJob:
        """Queue a request of a caller.

        Args:
            fields: of the request, in any known spelling, without those that are the door's.
            cache_key: sets jobs of the caller apart whose prompts begin alike.
            names: fields as they were spelled, by the names that errors have for them.
        Raises: ApiError.
        """
        asked_at = time.monotonic()
        own = {
            **fields,
            "id": self._draw(caller, served).text,
            "tenant": caller.job_tenant,
            "idempotency_key": _idempotency(caller, idempotency_key),
            **caller.cache_fields(cache_key),
        }
        reservation = None
        try:
            request = JobRequest.of_fields(own)
            _check_length(request, served, names)
            num_tokens = request.estimate_prompt_tokens() + request.n * request.max_tokens
            address = JobAddress(own["id"], caller.job_tenant).text
            reservation = await self._key_use.admit(caller, num_tokens, served.pool, address)
            await self._models.note(served.pool)
            # Its body may have come in slowly since it was let in.
            await self._keys.check_lately(caller)
            weight = await self._shares.weight(caller)
            job = await served.client.submit(request, ticket=ticket, weight=weight)
        except ApiError:
            await self.use.refund(reservation)
            raise
        except Exception as error:
            await self.use.refund(reservation)
            raise _refused(error, names) from error
        await self.use.note(reservation, is_new=job.created)
        submitted = _submitted(job, served, request, asked_at, reservation)
        self._metrics.submitted(submitted, caller.tenant)
        return submitted

    async def refund_unused(self, jobs: Iterable[SubmittedJob]) -> None:
        """Give back what jobs that have ended did not use of the limits of their key."""
        for job in jobs:
            await self.use.refund_unused(job.reservation)

    async def find(self, caller: Caller, given: str) -> SubmittedJob:
        """Return a job of the caller by its id, or by that of its answer.

        Whether it is there still, its client tells.
        Raises: ApiError 404 for one that is another caller's too.
        """
        job_id = job_id_of(given)
        name = JobName.parse(job_id)
        if name is None or name.owner != caller.id_prefix:
            raise not_found("job", given)
        pool = await self._models.pool_of_tag(name.pool_tag)
        if pool is None or not caller.may_use(pool):
            raise not_found("job", given)
        return SubmittedJob(
            job_id=job_id,
            tenant=tenant_of(caller, name),
            pool=pool,
            client=await self._models.client(pool),
            created=name.created,
        )

    def _draw(self, caller: Caller, served: ServedPool) -> JobName:
        is_cluster = isinstance(served.client.scripts.redis, ClusterRedis)
        is_own = caller.key_id is None and caller.tenant != DEFAULT_TENANT
        return JobName.draw(
            num_shards=NUM_SHARDS if is_cluster else 1,
            pool_tag=pool_tag(served.pool),
            owner=caller.id_prefix,
            share=caller.share,
            created=int(time.time()),
            tenant=caller.tenant if is_own else "",
        )


def _submitted(
    job: Job,
    served: ServedPool,
    request: JobRequest,
    asked_at: float,
    reservation: Reservation | None,
) -> SubmittedJob:
    """Return a job that the queue has accepted."""
    name = JobName.parse(job.job_id)
    return SubmittedJob(
        job_id=job.job_id,
        tenant=job.tenant,
        pool=served.pool,
        client=served.client,
        created=int(time.time()) if name is None else name.created,
        place=job,
        model=served.name,
        priority=request.priority,
        asked_at=asked_at,
        reservation=reservation if job.created else None,
    )


def tenant_of(caller: Caller, name: JobName) -> str:
    """Return the tenant, as the queue knows it, of a job that is the caller's."""
    if caller.key_id is None:
        return name.tenant or DEFAULT_TENANT
    return share_name(caller.tenant, name.share)


def _idempotency(caller: Caller, key: str | None) -> str | None:
    """Return the name of a request within what is the caller's. Raises: ApiError 400."""
    if key is None:
        return None
    if not key or len(key) > MAX_IDEMPOTENCY_KEY:
        told = f"has 1 to {MAX_IDEMPOTENCY_KEY} characters"
        raise ApiError(
            400, f"idempotency-key: {told}", code="invalid_request", param="idempotency-key"
        )
    return f"{caller.id_prefix}/{key}"


def _check_length(request: JobRequest, served: ServedPool, names: Mapping[str, str] | None) -> None:
    """Refuse at once what no worker has room for. Raises: ApiError 400."""
    limit = served.max_model_len
    if limit is not None and request.max_tokens >= limit:
        told = f"{request.max_tokens} tokens to generate leave no room for a prompt of {limit}"
        raise failed("too_long", told, "max_tokens", names)


def _refused(error: Exception, names: Mapping[str, str] | None) -> ApiError:
    """Return what the caller is told of a submit that failed.

    It is the boundary of the body: whatever that is made of, it costs its sender an answer.
    """
    if isinstance(error, ProducerError):
        return api_error(error, names)
    if isinstance(error, SERVER_ERRORS):
        return unreachable()
    return ApiError(400, f"The request cannot be read: {type(error).__name__}.")
