"""Pulling with the prefix in mind: jobs are left to the worker whose cache holds their prefix."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from workers.stubs import StubWorker, a_job, first_step, owned_end, raw, submit

from tokenbus.producer.scripts.replies import PullStatus

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts
    from tokenbus.producer.scripts.replies import Pulled

# Longer than any test: what is left to a worker stays left to it.
LONG_MS = 3_600_000


@pytest.fixture
async def home(scripts: Scripts) -> StubWorker:
    """Give a worker that has pulled a job of the prefix `p`, and has room for more."""
    made = StubWorker(scripts)
    await made.reconcile()
    await submit(scripts, a_job("first", prefix="p"))
    assert names(await made.pull(affinity_ms=LONG_MS)) == ["first"]
    await made.pull(affinity_ms=LONG_MS)
    return made


@pytest.fixture
async def other(scripts: Scripts) -> StubWorker:
    """Give another worker."""
    made = StubWorker(scripts)
    await made.reconcile()
    return made


def names(pulled: Pulled) -> list[str]:
    """List the jobs of a pull."""
    return [job.job_id for job in pulled.jobs]


async def length(scripts: Scripts, key: str, member: str = "") -> int:
    """Count the tokens of a bell."""
    found: int = await raw(scripts).llen(scripts.keys.of(key, member))
    return found


async def server_ms(scripts: Scripts) -> int:
    """Read the server's clock."""
    seconds, micros = await raw(scripts).time()
    return int(seconds) * 1000 + int(micros) // 1000


async def leave_for(scripts: Scripts, job_id: str, ms: int) -> None:
    """Let a job look as if it had been left to others `ms` ago."""
    record = scripts.keys.of("job", job_id)
    await raw(scripts).hset(record, "spared", await server_ms(scripts) - ms)


async def entered_before(
    scripts: Scripts, job_id: str, tenant: str, ms: int, priority: int = 1
) -> None:
    """Let the only job of a lane look as if it had entered it `ms` ago."""
    record, lane = scripts.keys.of("job", job_id), scripts.keys.lane(priority, tenant)
    [(_, fields)] = await raw(scripts).xrange(lane)
    await raw(scripts).delete(lane)
    entry = f"{await server_ms(scripts) - ms}-0"
    await raw(scripts).xadd(lane, fields, id=entry)
    await raw(scripts).hset(record, "entry", entry)


async def test_job_is_left_to_the_worker_that_holds_its_prefix(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """The other worker leaves it, wakes the one that holds the prefix, and is not woken itself."""
    await submit(scripts, a_job("next", prefix="p"))
    assert await length(scripts, "wake", home.name) == 1
    await raw(scripts).delete(scripts.keys.of("bell"), scripts.keys.of("wake", home.name))
    reply = await other.pull(affinity_ms=LONG_MS)
    assert (reply.status, reply.jobs) == (PullStatus.SPARED, ())
    assert 0 < reply.retry_ms <= LONG_MS
    assert await length(scripts, "wake", home.name) == 1
    assert await raw(scripts).pttl(scripts.keys.of("wake", home.name)) > 0
    assert await length(scripts, "bell") == 0
    [job] = (await home.pull(affinity_ms=LONG_MS)).jobs
    assert (job.job_id, job.prefix) == ("next", "p")


async def test_other_jobs_go_past_what_is_left(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """Jobs of an own, a new and no prefix are taken while a fairer one is left to its home."""
    await submit(scripts, a_job("mine", tenant="b", prefix="q"))
    assert names(await other.pull(affinity_ms=LONG_MS)) == ["mine"]
    await submit(
        scripts,
        a_job("theirs", tenant="a", prefix="p"),
        a_job("own", tenant="b", prefix="q"),
        a_job("new", tenant="c", prefix="r"),
        a_job("none", tenant="d"),
    )
    reply = await other.pull(affinity_ms=LONG_MS, cached={"q": 0})
    assert sorted(names(reply)) == ["new", "none", "own"]
    assert names(await home.pull(affinity_ms=LONG_MS)) == ["theirs"]


@pytest.mark.parametrize("why", ["dead", "lost", "off", "held_here", "handed_back"])
async def test_job_is_taken_at_once_where_nothing_is_gained(
    scripts: Scripts, home: StubWorker, other: StubWorker, why: str
) -> None:
    """Its home died or lost the prefix, affinity is off, both hold it, or it lies at the front."""
    await submit(scripts, a_job("next", prefix="p"))
    budget: dict[str, Any] = {"affinity_ms": LONG_MS}
    match why:
        case "dead":
            await home.die()
        case "lost":
            await home.pull(max_jobs=0, affinity_ms=LONG_MS, lost_prefixes=["p", "unheard"])
        case "off":
            budget = {}
        case "held_here":
            budget["cached"] = {"p": 0}
        case _:
            await home.pull(affinity_ms=LONG_MS)
            await scripts.lease.requeue(home.name, "next", 1)
    assert names(await other.pull(**budget)) == ["next"]


async def test_no_crowd_gathers_at_a_home_beside_a_worker_that_idles(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """It leaves the home as many jobs as it has itself, and sixteen; then it takes one."""
    await submit(scripts, *(a_job(prefix="p") for _ in range(16)))
    assert (await other.pull(affinity_ms=LONG_MS)).jobs == ()
    assert len((await home.pull(affinity_ms=LONG_MS)).jobs) == 16
    await submit(scripts, *(a_job(f"late-{i}", prefix="p") for i in range(3)))
    assert names(await other.pull(affinity_ms=LONG_MS)) == ["late-0"]
    assert names(await other.pull(affinity_ms=LONG_MS)) == []
    assert names(await home.pull(max_jobs=1, affinity_ms=LONG_MS)) == ["late-1"]
    assert names(await other.pull(affinity_ms=LONG_MS)) == ["late-2"]


async def test_leaving_worker_gives_its_prefixes_up_at_once(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """What was left to it is announced and taken by another, and stays at home there."""
    await submit(scripts, a_job("next", prefix="p"))
    assert (await other.pull(affinity_ms=LONG_MS)).status is PullStatus.SPARED
    await raw(scripts).delete(scripts.keys.of("bell"), scripts.keys.of("wake", home.name))
    await scripts.lease.leave(home.name)
    assert await length(scripts, "bell") == 1
    assert names(await other.pull(affinity_ms=LONG_MS)) == ["next"]
    assert await raw(scripts).get(scripts.keys.of("home", "p")) == other.name.encode()
    await submit(scripts, a_job("later", prefix="p"))
    assert await length(scripts, "wake", home.name) == 0


async def test_leaving_worker_pulls_nothing_more(scripts: Scripts, home: StubWorker) -> None:
    """A pull of it that was late on its way brings no job to one that will not run it."""
    await submit(scripts, a_job("next"))
    await scripts.lease.leave(home.name)
    assert (await home.pull()).jobs == ()


async def test_worker_that_was_struck_off_leaves_no_trace(scripts: Scripts) -> None:
    """A worker without a lease that nobody lists any more is not written down again."""
    await scripts.lease.leave("long-gone")
    assert await raw(scripts).exists(scripts.keys.of("worker", "long-gone")) == 0


async def test_off_leaves_no_trace(scripts: Scripts, other: StubWorker) -> None:
    """Without affinity nothing is stored for a prefix."""
    await submit(scripts, a_job(prefix="p"))
    await other.pull()
    assert await raw(scripts).exists(scripts.keys.of("home", "p")) == 0


async def test_home_is_kept_with_a_ttl_while_others_help_out(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """A worker that takes one job after its time does not take the prefix away from its home."""
    await submit(scripts, a_job("next", prefix="p"))
    await other.pull(affinity_ms=LONG_MS)
    await leave_for(scripts, "next", LONG_MS)
    assert names(await other.pull(affinity_ms=LONG_MS)) == ["next"]
    key = scripts.keys.of("home", "p")
    assert await raw(scripts).get(key) == home.name.encode()
    assert await raw(scripts).pttl(key) > 0


async def test_no_job_is_left_for_longer_than_its_time(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """Its home never pulls and the other has work without end, yet its turn comes."""
    bound_ms = 50
    await other.pull(affinity_ms=bound_ms)
    await submit(scripts, a_job("left", tenant="poor", prefix="p"))
    await submit(scripts, *(a_job(tenant="rich", prefix="q") for _ in range(2)))
    record = scripts.keys.of("job", "left")
    num_past = 0
    while True:
        await submit(scripts, a_job(tenant="rich", prefix="q"))
        since = await raw(scripts).hget(record, "spared")
        is_due = since is not None and await server_ms(scripts) - int(since) >= bound_ms
        [job] = (await other.pull(max_jobs=1, affinity_ms=bound_ms, cached={"q": 0})).jobs
        if job.job_id == "left":
            break
        assert not is_due
        end = owned_end(job.job_id, 1, 0)
        await first_step(scripts, job.job_id, end.finish, 1)
        num_past += 1
    assert num_past > 0
    assert home.name != other.name


async def test_lead_over_a_tenant_whose_jobs_are_left_is_bounded(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """However long its home lets it wait, others get four jobs of service ahead, not more."""
    await submit(scripts, *(a_job(f"left-{i}", tenant="poor", prefix="p") for i in range(3)))
    await submit(scripts, *(a_job(tenant="rich", prefix="q") for _ in range(12)))
    taken = []
    for _ in range(8):
        reply = await other.pull(max_jobs=1, affinity_ms=LONG_MS, cached={"q": 0})
        taken += [job.tenant for job in reply.jobs]
    assert taken == ["rich"] * 5 + ["poor", "rich", "poor"]
    assert names(await home.pull(max_jobs=1, affinity_ms=LONG_MS)) == ["left-2"]


async def test_lower_class_waits_behind_a_full_home_and_passes_one_with_room(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """A home with room takes its job at once; for a full one nothing less urgent goes past."""
    await submit(scripts, a_job("urgent", priority=0, tenant="a", prefix="p"))
    await submit(scripts, *(a_job(f"low-{i}", priority=2, tenant="b") for i in range(2)))
    assert names(await other.pull(max_jobs=1, affinity_ms=LONG_MS)) == ["low-0"]
    await home.pull(pages=0, take_head_of_line=False, affinity_ms=LONG_MS)
    assert names(await other.pull(max_jobs=1, affinity_ms=LONG_MS)) == []
    await leave_for(scripts, "urgent", LONG_MS)
    assert names(await other.pull(affinity_ms=LONG_MS)) == ["urgent", "low-1"]


async def test_idle_worker_waits_less_than_one_with_other_work(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """A job that has waited long is left for a fifth of that, by a worker with other work."""
    await submit(scripts, a_job("old", tenant="a", prefix="p"))
    await entered_before(scripts, "old", "a", LONG_MS)
    await leave_for(scripts, "old", 200)
    await submit(scripts, a_job("own", tenant="b", prefix="q"))
    budget: dict[str, Any] = {"affinity_ms": 100, "cached": {"q": 0}}
    assert names(await other.pull(**budget)) == ["own"]
    assert names(await other.pull(**budget)) == ["old"]
    assert home.name != other.name


async def test_lower_class_is_held_back_for_the_bounded_time_alone(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """Urgent jobs of a full home may come without end: who has waited the time goes past them."""
    bound_ms = 60_000
    await submit(scripts, a_job("low", priority=2, tenant="plain"))
    await submit(scripts, a_job("urgent-0", priority=0, tenant="a", prefix="p"))
    await home.pull(pages=0, take_head_of_line=False, affinity_ms=bound_ms)
    reply = await other.pull(affinity_ms=bound_ms)
    assert (names(reply), reply.status) == ([], PullStatus.SPARED)
    assert 0 < reply.retry_ms <= bound_ms
    await entered_before(scripts, "low", "plain", bound_ms, priority=2)
    await submit(scripts, a_job("urgent-1", priority=0, tenant="a", prefix="p"))
    assert names(await other.pull(affinity_ms=bound_ms)) == ["low"]


async def test_tenant_without_affinity_never_waits_longer_than_the_bounded_time(
    scripts: Scripts, home: StubWorker, other: StubWorker
) -> None:
    """Whatever the classes, a worker with room leaves no plain job that has waited the time.

    Half of the jobs that come are of prefixes at home with a worker that is full for good.
    """
    bound_ms = 30
    chance = random.Random(1)
    await submit(scripts, *(a_job(f"home-{i}", prefix=f"p{i}") for i in range(6)))
    assert len((await home.pull(affinity_ms=bound_ms)).jobs) == 6
    await home.pull(pages=0, take_head_of_line=False, affinity_ms=bound_ms)
    plain: dict[str, int] = {}
    num_held_back = 0
    for number in range(300):
        priority = chance.randrange(3)
        if chance.random() < 0.5:
            index = chance.randrange(6)
            await submit(scripts, a_job(priority=priority, tenant=f"t{index}", prefix=f"p{index}"))
        else:
            await submit(scripts, a_job(f"plain-{number}", priority=priority, tenant="plain"))
            plain[f"plain-{number}"] = await server_ms(scripts)
        asked_ms = await server_ms(scripts)
        reply = await other.pull(affinity_ms=bound_ms)
        for job in reply.jobs:
            plain.pop(job.job_id, None)
            end = owned_end(job.job_id, 1, 0)
            await first_step(scripts, job.job_id, end.finish, 1)
        num_held_back += len(plain)
        assert all(asked_ms - came_ms < bound_ms for came_ms in plain.values())
    assert num_held_back > 0
