"""The real scripts under random schedules: lost, doubled and late calls, deaths, pauses, cancels.

In the end the network heals, one fresh worker finishes what is left, and nothing may be lost,
doubled or left behind.
"""

from __future__ import annotations

import hashlib
import random

import pytest
from bus_random_worker import FaultyRedis
from bus_stubs import indices, num_ends, raw
from bus_world import NUM_STEPS, World
from redis.exceptions import ResponseError

from tokenbus.producer import script_runner
from tokenbus.producer.replies import JobState
from tokenbus.producer.script_runner import script_source
from tokenbus.producer.scripts import Scripts


async def check_nothing_is_left(world: World) -> None:
    """Check that every job ended once with all its indices, and that no state is left behind."""
    scripts, redis, keys = world.truth, raw(world.truth), world.truth.keys
    for job in world.accepted:
        record = await scripts.queue.record(job)
        assert record is not None
        assert (job, record.state) == (job, JobState.DONE)
        assert (job, await num_ends(scripts, job)) == (job, 1)
        seen = await indices(scripts, job)
        assert seen == list(range(1, len(seen) + 1))
        finish = (await scripts.log.events(job) or [])[-1].finish
        assert finish is not None
        used = finish.usage.prompt_tokens + finish.usage.completion_tokens
        assert int(await redis.hget(keys.of("job", job), "charge")) == used
    left = {
        key.decode().removeprefix(keys.prefix)
        async for key in redis.scan_iter(f"{keys.prefix}*", count=1000)
        if await redis.ttl(key) < 0
    }
    assert left <= {":floor", ":load", ":drain", ":bell", ":dead"}
    load = await scripts.lease.load()
    assert not any(load.values())


async def run_schedule(scripts: Scripts, seed: int) -> None:
    """Run one schedule on an empty pool and check what it left."""
    chance = random.Random(seed)
    network = FaultyRedis(scripts.redis, chance)
    faulty = Scripts(network, scripts.keys.pool)  # type: ignore[arg-type]  # as much as is used
    world = World(faulty, scripts, network, chance)
    for _ in range(3):
        world.new_worker()
    for _ in range(NUM_STEPS):
        await world.step()
    await world.settle()
    await check_nothing_is_left(world)


async def run_schedules(scripts: Scripts, num_seeds: int) -> None:
    """Run schedules one after the other, each on a pool of its own."""
    for seed in range(num_seeds):
        await run_schedule(Scripts(scripts.redis, f"{scripts.keys.pool}{seed}"), seed)


@pytest.mark.parametrize("seed", range(8))
async def test_no_schedule_loses_or_doubles_anything(scripts: Scripts, seed: int) -> None:
    """Whatever calls are lost or late and whoever dies, each job ends once, whole, and is gone."""
    await run_schedule(scripts, seed)


RULES = {
    "marker-carries-the-index": (
        "takeover",
        "local last = tail and tail.to or 0",
        "local last = 0",
    ),
    "one-end": ("end", "elseif tail and tail.ended then", "elseif false then"),
    "requeue-needs-the-epoch": ("requeue", "if not is_held(worker, job, epoch)", "if false"),
    "tick-hands-out-endings": ("tick", "endings[#endings + 1] = ending_of(job)\n  else", "else"),
    "completion-lets-go": ("complete", "if state == 'held' then", "if false then"),
}


@pytest.mark.parametrize("rule", RULES)
async def test_each_rule_is_needed(
    scripts: Scripts, rule: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a rule of the protocol switched off, some schedule breaks a promise."""
    name, line, instead = RULES[rule]
    whole = script_source(name)
    assert line in whole
    weaker = whole.replace(line, instead)

    def source(asked: str) -> str:
        return weaker if asked == name else script_source(asked)

    monkeypatch.setattr(script_runner, "script_source", source)
    monkeypatch.setattr(
        script_runner,
        "script_sha",
        lambda asked: hashlib.sha1(source(asked).encode(), usedforsecurity=False).hexdigest(),
    )
    with pytest.raises((AssertionError, ResponseError)):
        await run_schedules(scripts, 60)
