"""The bridge for backends on arq: `enqueue_job("generate", prompt=…)` runs on the pool.

The id of the arq job is the id of the pool's job, among those of the tenant that it names. So a
retry, after a crash or a restart of this worker, finds the job running or finished and generates
nothing twice, and anyone may follow the tokens of the same id meanwhile. Only an abort cancels the
generation; a stop of this worker leaves it running and gives the arq job back.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from arq.constants import in_progress_key_prefix
from arq.worker import Retry, Worker, func

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.result import JobEndedEarly, JobFailed
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import (
    IdempotencyConflict,
    JobLost,
    JobUnknown,
    ProducerError,
    ServerError,
)
from tokenbus.producer.scripts.replies import JobState
from tokenbus.worker.control.arq_worker import HEALTH_INTERVAL_S, keep_running
from tokenbus.worker.control.endings import Endings
from tokenbus.worker.control.errors import GenerationFailed, JobNotPlain
from tokenbus.worker.control.metrics import ControlMetrics
from tokenbus.worker.control.serializer import unpack
from tokenbus.worker.control.submitter import Submitter
from tokenbus.worker.logs import get_logger

if TYPE_CHECKING:
    from arq.connections import ArqRedis

    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.contract.result import JobResult
    from tokenbus.worker.control.settings import ControlSettings

# Between the job's own deadline and the timeout of arq.
DEADLINE_MARGIN_S = 5.0
_RETRY_S = 1.0
_MAX_READS = 16


class AdapterWorker(Worker):
    """arq's worker for many jobs that only wait.

    arq looks at every running job again at each poll, one round trip each: with a thousand under
    way a poll takes most of a second. Here a poll asks once for all that run elsewhere.
    """

    def __init__(self, adapter: Adapter, redis: ArqRedis, settings: ControlSettings) -> None:
        super().__init__(
            [func(adapter.generate, name="generate")],
            queue_name=settings.queue,
            redis_pool=redis,
            handle_signals=False,
            max_jobs=settings.adapter_max_jobs,
            job_timeout=settings.adapter_job_timeout_s,
            keep_result=settings.adapter_result_ttl_s,
            poll_delay=settings.adapter_poll_delay_s,
            max_tries=settings.adapter_max_tries,
            health_check_interval=HEALTH_INTERVAL_S,
            allow_abort_jobs=True,
            job_serializer=redis.job_serializer,
            job_deserializer=redis.job_deserializer,
            log_results=False,
        )
        self.in_progress_timeout_s = settings.adapter_lock_s
        self._renewed_at = time.monotonic()
        self._adapter = adapter
        adapter.worker = self

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        """Start those of the jobs that nobody runs."""
        ids = [job_id for job_id in job_ids if job_id.decode() not in self.tasks]
        if not ids:
            return
        async with self.pool.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.exists(in_progress_key_prefix.encode() + job_id)
            locked = await pipe.execute()
        await super().start_jobs([i for i, lock in zip(ids, locked, strict=True) if not lock])

    async def finish_failed_job(self, job_id: str, result_data: bytes | None) -> None:
        """Note a job that fails without having run: a generation of an earlier try ends too."""
        await self._adapter.cancel(job_id, _tenant_of(result_data))
        await super().finish_failed_job(job_id, result_data)

    async def heart_beat(self) -> None:
        """Prolong the locks now and then; arq calls this at every poll."""
        now = time.monotonic()
        if now - self._renewed_at > self.in_progress_timeout_s / 5 and self.job_tasks:
            lock_ms = int(self.in_progress_timeout_s * 1000)
            async with self.pool.pipeline(transaction=False) as pipe:
                for job_id in self.job_tasks:
                    pipe.pexpire(in_progress_key_prefix + job_id, lock_ms)
                await pipe.execute()
            self._renewed_at = now
        await super().heart_beat()


class Adapter:
    """Runs arq's `generate` jobs on a pool."""

    def __init__(
        self,
        client: AsyncClient,
        settings: ControlSettings,
        metrics: ControlMetrics | None = None,
    ) -> None:
        self.metrics = metrics or ControlMetrics()
        self._client = client
        self._settings = settings
        self._endings = Endings(client.scripts, settings.call_timeout_s)
        self._submitter = Submitter(client)
        self._reads = asyncio.Semaphore(_MAX_READS)
        self._log = get_logger()
        self.worker: AdapterWorker | None = None

    async def run(self) -> None:
        """Run until cancelled. Raises: ServerUnreachable."""
        settings = self._settings
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._endings.run())
            tasks.create_task(self._submitter.run())
            tasks.create_task(
                keep_running(
                    lambda redis: AdapterWorker(self, redis, settings),
                    settings.arq_redis_url or self._client.effective_url,
                    settings.queue,
                    settings.call_timeout_s,
                    settings.outage_timeout_s,
                )
            )

    async def generate(self, ctx: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """Run one job: the fields of `JobRequest` in, text and usage out.

        Raises: GenerationFailed, RequestInvalid, IdempotencyConflict; Retry while the pool is away.
        """
        outcome = "failed"
        self.metrics.adapter_running += 1
        try:
            answer = await self._generate(ctx, fields)
            outcome = "finished"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except Retry:
            outcome = "retried"
            raise
        finally:
            self.metrics.adapter_running -= 1
            self.metrics.adapter_jobs[outcome] += 1
        return answer

    async def _generate(self, ctx: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
        job_id: str = ctx["job_id"]
        request = self._request(job_id, fields)
        try:
            with self._endings.of(JobAddress(job_id, request.tenant).text) as ended:
                job = await self._submit(request, first_try=ctx["job_try"] == 1)
                if job is None or job.state is not JobState.DONE:
                    await ended.wait()
            async with self._reads:
                result = await self._client.result(job_id, tenant=request.tenant)
        except asyncio.CancelledError:
            if self.worker is not None and job_id in self.worker.aborting_tasks:
                await self.cancel(job_id, request.tenant)
            raise
        except (JobLost, JobUnknown, ServerError) as error:
            self._log.warning("adapter.job_retried", job_id=job_id, reason=str(error))
            raise Retry(_RETRY_S) from error
        except JobEndedEarly as error:
            raise _failure(error) from None
        return _answer(result)

    async def cancel(self, job_id: str, tenant: str) -> None:
        """Cancel the generation of an arq job that nobody waits for any more."""
        try:
            await self._client.cancel(job_id, tenant)
        except JobUnknown:
            return
        except (ProducerError, *SERVER_ERRORS) as error:
            self._log.warning("adapter.cancel_failed", job_id=job_id, reason=str(error))

    def _request(self, job_id: str, fields: dict[str, Any]) -> JobRequest:
        """Check the fields, and let the job expire before arq gives it up."""
        longest = self._settings.adapter_job_timeout_s - DEADLINE_MARGIN_S
        deadline_s = fields.get("deadline_s")
        if deadline_s is None or (isinstance(deadline_s, int | float) and deadline_s > longest):
            deadline_s = longest
        return JobRequest.build(**(fields | {"id": job_id, "deadline_s": deadline_s}))

    async def _submit(self, request: JobRequest, *, first_try: bool) -> Job | None:
        """Submit, or return None for a retry whose job was submitted under other settings."""
        try:
            return await self._submitter.submit(request)
        except IdempotencyConflict:
            if first_try:
                raise
            return None


def _tenant_of(result_data: bytes | None) -> str:
    """Return the tenant that the arguments of a failed arq job name."""
    try:
        fields = unpack(result_data or b"")["k"]
    except (JobNotPlain, KeyError):
        return DEFAULT_TENANT
    tenant = fields.get("tenant", DEFAULT_TENANT) if isinstance(fields, dict) else None
    return tenant if isinstance(tenant, str) else DEFAULT_TENANT


def _answer(result: JobResult) -> dict[str, Any]:
    """Return what `Job.result()` gives; `choices` only where there are several."""
    answer: dict[str, Any] = {
        "job_id": result.job_id,
        "tenant": result.tenant,
        "text": result.text,
        "reason": result.finish.reason,
        "usage": asdict(result.finish.usage),
    }
    if len(result.choices) > 1:
        answer["choices"] = [
            {"index": choice.index, "text": choice.text, "reason": choice.reason}
            for choice in result.choices
        ]
    return answer


def _failure(error: JobEndedEarly) -> GenerationFailed:
    code = error.result.finish.reason
    message = str(error)
    if isinstance(error, JobFailed):
        code = error.code
        message = message.removeprefix(f"{code}: ")
    return GenerationFailed(code, message, error.result.text)
