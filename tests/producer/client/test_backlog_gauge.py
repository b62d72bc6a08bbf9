"""The seconds of backlog, held to what came of them: by real pulls, on a clock that is made up."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from workers.stubs import WIDE, StubWorker, a_job, raw

from tokenbus.producer.client.pool_figures import read_figures
from tokenbus.producer.client.pool_status import server_ms

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

SEATS, TOKENS_PER_S, TICK_S = 48, 25.0, 0.5
NUM_JOBS, WARM_S, LOOK_S = 500, 20.0, 5.0


@dataclass(slots=True)
class Pool:
    """Workers whose seats are taken until each job has all its tokens; times are made up."""

    scripts: Scripts
    lengths: dict[str, int]
    now_s: float = 0.0
    num_waiting: int = NUM_JOBS
    workers: list[StubWorker] = field(default_factory=list)
    ends: list[dict[str, float]] = field(default_factory=list)
    gauges: list[tuple[float, float]] = field(default_factory=list)

    async def add_worker(self) -> None:
        """Let one more live, with all its seats free."""
        worker = StubWorker(self.scripts)
        await worker.reconcile()
        self.workers.append(worker)
        self.ends.append({})

    async def tick(self) -> None:
        """Let the next moment come: seats fall free, and who has any pulls."""
        self.now_s += TICK_S
        keys, redis = self.scripts.keys, raw(self.scripts)
        since_ms = 1000 * TICK_S
        for worker, ends in zip(self.workers, self.ends, strict=True):
            if gone := [job_id for job_id, end in ends.items() if end <= self.now_s]:
                await redis.hdel(keys.of("held", worker.name), *gone)
                for job_id in gone:
                    del ends[job_id]
            # For the script as much time has passed since the pull before, of any and of its own.
            now_ms = await server_ms(self.scripts.redis)
            await redis.hset(keys.of("drain"), "at", int(now_ms - since_ms))
            since_ms = 0.0
            told_by = keys.of("worker", worker.name)
            if left := await redis.hget(told_by, "left"):
                held, _, young = left.split()
                past = b"%d" % (now_ms - 1000 * TICK_S)
                await redis.hset(keys.of("drain"), "since", past)
                await redis.hset(told_by, "left", b" ".join((held, past, young)))
            pulled = await worker.pull(10_000, max_jobs=SEATS - len(ends))
            # What this process took for it is no time of the pool's.
            took_ms = int(await redis.hget(keys.of("drain"), "at")) - now_ms
            if took_ms > 0:
                await redis.hincrbyfloat(keys.of("drain"), "busy", -took_ms)
            for job in pulled.jobs:
                ends[job.job_id] = self.now_s + self.lengths[job.job_id] / TOKENS_PER_S
            self.num_waiting -= len(pulled.jobs)

    async def look(self) -> None:
        """Note the gauge."""
        figures = await read_figures(self.scripts.redis, self.scripts.keys)
        self.gauges.append((self.now_s, figures.seconds_of_backlog))


async def test_gauge_is_the_time_until_the_last_waiting_job_begins(scripts: Scripts) -> None:
    """Within 20 % while a backlog lasts, and at once again when a second worker fills its seats.

    Prompts and answers are of many lengths that have nothing to do with each other, and an answer
    takes as long as it has tokens, as on a device that generates.
    """
    draw = random.Random(7)
    jobs, lengths = [], {}
    for number in range(NUM_JOBS):
        lengths[f"j{number}"] = output = min(1000, int(draw.lognormvariate(5.2, 0.6)))
        prompt = min(6000, int(draw.lognormvariate(6.6, 1.0)))
        jobs.append(a_job(f"j{number}", prompt_tokens=prompt, output_tokens=output))
    await scripts.queue.submit_many(jobs, WIDE)
    pool = Pool(scripts, lengths)
    await pool.add_worker()
    halved_s, looked_s = 0.0, WARM_S
    while pool.num_waiting:
        await pool.tick()
        if not halved_s and pool.num_waiting < NUM_JOBS / 2:
            await pool.add_worker()
            halved_s = pool.now_s
        elif pool.now_s >= looked_s:
            await pool.look()
            looked_s += LOOK_S
    # Of the first worker alone nobody knows that another will come.
    told = [(at, gauge) for at, gauge in pool.gauges if at > halved_s and pool.now_s - at > LOOK_S]
    assert len(told) >= 3
    for at, gauge in told:
        left = pool.now_s - at
        assert abs(gauge - left) <= max(0.2 * left, 5 * TICK_S), (at, gauge, left)
