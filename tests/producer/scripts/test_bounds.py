"""Fairness between tenants, and the bounds of the queue."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from workers.stubs import StubWorker, a_job, raw, submit

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.scripts import Bounds
from tokenbus.producer.scripts.replies import Refused, Submitted

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.completion import JobCompletion

COST = 48


async def drain(
    completion: JobCompletion,
    worker: StubWorker,
    num_jobs: int,
    prompts: dict[str, int] | None = None,
) -> list[str]:
    """Pull and finish jobs one at a time; return their tenants in order."""
    tenants = []
    for _ in range(num_jobs):
        [job] = (await worker.pull(max_jobs=1)).jobs
        tenants.append(job.tenant)
        await worker.run(job.job_id, job.epoch, 16)
        prompt = (prompts or {}).get(job.job_id, 32)
        finish = Finish("stop", Usage(prompt, 0, 16)).dump()
        await completion.complete(job.job_id, finish)
    return tenants


async def a_worker(scripts: Scripts) -> StubWorker:
    """Give a reconciled worker."""
    worker = StubWorker(scripts)
    await worker.reconcile()
    return worker


async def test_backlogged_tenants_share_equally(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Of three tenants that always want more each gets a third, whoever came first."""
    for tenant in "abc":
        await submit(scripts, *(a_job(tenant=tenant) for _ in range(12)))
    worker = await a_worker(scripts)
    assert Counter(await drain(completion, worker, 18)) == {"a": 6, "b": 6, "c": 6}


async def test_shares_are_in_tokens_and_by_weight(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A tenant of weight two gets two jobs for one of its neighbour's of the same size."""
    await submit(scripts, *(a_job(tenant="heavy", weight=2.0) for _ in range(20)))
    await submit(scripts, *(a_job(tenant="light") for _ in range(20)))
    served = Counter(await drain(completion, await a_worker(scripts), 18))
    assert served["heavy"] == 12


async def test_flooder_does_not_delay_a_newcomer(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A tenant's single job goes next, however many another has waiting."""
    await submit(scripts, *(a_job(tenant="flood") for _ in range(200)))
    worker = await a_worker(scripts)
    await drain(completion, worker, 5)
    await submit(scripts, a_job(tenant="small"))
    assert "small" in await drain(completion, worker, 2)


async def test_new_flooder_has_no_credit_against_the_old(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A tenant with much past service is not starved by one that is new: the floor lifts it."""
    await submit(scripts, *(a_job(tenant="old") for _ in range(40)))
    worker = await a_worker(scripts)
    await raw(scripts).zadd(scripts.keys.of("backlog", "1"), {"old": 1e8})
    await drain(completion, worker, 2)
    await submit(scripts, *(a_job(tenant="new") for _ in range(40)))
    served = Counter(await drain(completion, worker, 10))
    assert served == {"old": 5, "new": 5}


async def test_returning_tenant_has_saved_nothing(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """Who was away while others were served comes back as their equal, not as their creditor."""
    await submit(scripts, a_job(tenant="away"), *(a_job(tenant="busy") for _ in range(40)))
    worker = await a_worker(scripts)
    await drain(completion, worker, 20)
    await submit(scripts, *(a_job(tenant="away") for _ in range(20)))
    served = Counter(await drain(completion, worker, 10))
    assert served == {"away": 5, "busy": 5}


async def test_emptying_the_lane_erases_no_debt(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A tenant that sends one large job at a time pays for it when it comes back."""
    worker = await a_worker(scripts)
    await submit(scripts, *(a_job(tenant="steady") for _ in range(40)))
    await submit(scripts, a_job("large", tenant="gusty", prompt_tokens=48 * 6 - 16))
    served = await drain(completion, worker, 3, {"large": 48 * 6 - 16})
    await submit(scripts, *(a_job(tenant="gusty") for _ in range(5)))
    served += await drain(completion, worker, 9)
    assert served.count("gusty") <= 4


async def test_idle_pool_remembers_nobody(scripts: Scripts, completion: JobCompletion) -> None:
    """When all is served no tenant keeps a key, however many there were."""
    await submit(scripts, *(a_job(tenant=f"t{i}") for i in range(20)))
    await drain(completion, await a_worker(scripts), 20)
    keys = scripts.keys
    names = [keys.of(name, "1") for name in ("backlog", "running", "resting", "holding")]
    assert await raw(scripts).exists(*names, keys.of("line")) == 0
    assert [name for name in await scripts.lease.load() if name.startswith("tenant:")] == []


async def test_cancel_of_a_pulled_job_refunds_what_was_not_used(
    scripts: Scripts, completion: JobCompletion
) -> None:
    """A job that ends early costs its tenant what it used, not what was charged."""
    await submit(scripts, *(a_job(tenant="a", output_tokens=1000) for _ in range(4)))
    await submit(scripts, *(a_job(tenant="b") for _ in range(40)))
    worker = await a_worker(scripts)
    served = Counter(await drain(completion, worker, 8))
    assert served == {"a": 4, "b": 4}


async def submit_within(
    scripts: Scripts, bounds: Bounds, ticket: int = 0, **fields: object
) -> Submitted | Refused:
    """Submit one job under bounds."""
    return await scripts.queue.submit(a_job(**fields), bounds, ticket=ticket)  # type: ignore[arg-type]  # fields are checked by the test


async def test_queue_is_bounded_per_tenant_and_pool(scripts: Scripts) -> None:
    """Over a bound in tokens a submit is refused with what is there; other tenants go on."""
    bounds = Bounds(tenant_tokens=4 * COST, pool_tokens=7 * COST)
    for _ in range(4):
        assert isinstance(await submit_within(scripts, bounds), Submitted)
    refused = await submit_within(scripts, bounds)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.queued_tokens) == ("full_tenant", 4 * COST)
    assert refused.retry_after_ms > 0
    for _ in range(3):
        assert isinstance(await submit_within(scripts, bounds, tenant="b"), Submitted)
    refused = await submit_within(scripts, bounds, tenant="c")
    assert isinstance(refused, Refused)
    assert refused.status == "full_pool"


async def test_refused_jobs_are_called_back_one_after_the_other(scripts: Scripts) -> None:
    """Each refusal names a later time than the one before, spread at the drain rate."""
    bounds = Bounds(tenant_tokens=2 * COST, pool_tokens=10**9)
    for _ in range(2):
        await submit_within(scripts, bounds)
    times_ms = []
    for _ in range(5):
        refused = await submit_within(scripts, bounds)
        assert isinstance(refused, Refused)
        times_ms.append(refused.ticket)
    # Where no rate was measured a job counts for a second.
    assert all(later - sooner >= 999 for sooner, later in pairwise(times_ms))


async def test_ticket_goes_before_newcomers(scripts: Scripts) -> None:
    """Room that frees up belongs to who was promised it; without a ticket one is refused."""
    bounds = Bounds(tenant_tokens=10 * COST, pool_tokens=10**9)
    for _ in range(10):
        await submit_within(scripts, bounds)
    refused = await submit_within(scripts, bounds)
    assert isinstance(refused, Refused)
    worker = await a_worker(scripts)
    await worker.pull(max_jobs=1)
    newcomer = await submit_within(scripts, bounds)
    assert isinstance(newcomer, Refused)
    early = await submit_within(scripts, bounds, ticket=refused.ticket + 3_600_000)
    assert isinstance(early, Refused)
    in_time = await submit_within(scripts, bounds, ticket=1)
    assert isinstance(in_time, Submitted)


async def test_job_larger_than_the_bound_gets_into_an_empty_queue(scripts: Scripts) -> None:
    """A bound never shuts a job out for good."""
    bounds = Bounds(tenant_tokens=COST // 2, pool_tokens=COST // 2)
    assert isinstance(await submit_within(scripts, bounds), Submitted)
    assert isinstance(await submit_within(scripts, bounds), Refused)


async def test_place_counts_what_goes_before(scripts: Scripts) -> None:
    """The place of an accepted job counts its own and higher classes, not lower ones."""
    await submit(scripts, a_job(priority=0), a_job(priority=1), a_job(priority=2))
    [reply] = await submit(scripts, a_job(priority=1))
    assert isinstance(reply, Submitted)
    assert (reply.place.jobs_ahead, reply.place.tokens_ahead) == (2, 2 * COST)


async def test_measured_rate_gives_an_eta_and_refuses_what_is_late(scripts: Scripts) -> None:
    """With a drain rate known, the ETA follows from it, and an unmeetable deadline is refused."""
    await submit(scripts, *(a_job() for _ in range(10)))
    await raw(scripts).hset(
        scripts.keys.of("drain"), mapping={"tokens": 1000, "busy": 10_000, "open": 1}
    )
    [reply] = await submit(scripts, a_job())
    assert isinstance(reply, Submitted)
    assert reply.place.eta_ms == 10 * COST * 10
    # Of two workers the time counts twice, and each has the rate.
    await raw(scripts).sadd(scripts.keys.of("workers"), "one", "two")
    [reply] = await submit(scripts, a_job("again"))
    assert isinstance(reply, Submitted)
    assert reply.place.eta_ms == 11 * COST * 10 / 2
    await raw(scripts).srem(scripts.keys.of("workers"), "one", "two")
    late = await submit_within(scripts, Bounds(10**9, 10**9, refuse_late=True), deadline_ms=2000)
    assert isinstance(late, Refused)
    assert (late.status, late.eta_ms) == ("late", 12 * COST * 10)
