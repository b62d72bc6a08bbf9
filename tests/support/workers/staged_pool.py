"""A pool that only looks like one: workers that tell of themselves, jobs that wait or ended."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from workers.stubs import WIDE, a_job, raw

from tokenbus.producer.client.pool_status import server_ms

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts

TENANTS = ("acme", "zen", "lamps-and-more", "northwind", "contoso", "initech", "umbrella", "hooli")
NUM_PAGES = 4096
_LEASE_MS = 600_000


@dataclass(slots=True)
class StagedPool:
    """Writes what workers and scripts would have written, without any of them."""

    scripts: Scripts
    random: random.Random = field(default_factory=lambda: random.Random(7))
    workers: list[str] = field(default_factory=list)

    async def add_workers(self, number: int, model: str = "llama-3.1-8b-instruct") -> None:
        """Let workers live, and tell of themselves."""
        keys = self.scripts.keys
        self.workers = [f"gpu-{at // 8 + 1:02d}-{at % 8}" for at in range(number)]
        async with self.scripts.redis.pipeline(transaction=False) as pipe:
            for name in self.workers:
                pipe.sadd(keys.of("workers"), name)
                pipe.set(keys.of("alive", name), 16 * NUM_PAGES, px=_LEASE_MS)
            await pipe.execute()
        await self.tell(model)

    async def tell(self, model: str = "llama-3.1-8b-instruct") -> None:
        """Let every worker tell how it is now."""
        keys = self.scripts.keys
        async with self.scripts.redis.pipeline(transaction=False) as pipe:
            for at, name in enumerate(self.workers):
                status = json.dumps(self._status(at, name, model))
                pipe.set(keys.of("status", name), status, px=_LEASE_MS)
            await pipe.execute()

    def _status(self, at: int, name: str, model: str) -> dict[str, object]:
        draw = self.random
        held = int(NUM_PAGES * draw.uniform(0.35, 0.6))
        shared = int(NUM_PAGES * draw.uniform(0.05, 0.2))
        cached = int((NUM_PAGES - held - shared) * draw.uniform(0.3, 0.8))
        return {
            "v": 1,
            "worker": name,
            "model": model,
            "names": [model],
            "version": "0.1.0",
            "phase": "ready",
            "uptime_s": 40_000 + 60 * at,
            "page_size": 16,
            "total_pages": NUM_PAGES,
            "max_model_len": 8192,
            "ready": True,
            "tokens_per_s": round(draw.uniform(1800, 2600), 1),
            "prompt_tokens_per_s": round(draw.uniform(5000, 9000), 1),
            "engine": {
                "num_running": draw.randrange(48, 96),
                "num_waiting": draw.randrange(4),
                "free_pages": NUM_PAGES - held - shared - cached,
                "evictable_pages": cached,
                "shared_pages": shared,
            },
        }

    async def add_jobs(self, number: int) -> None:
        """Let jobs of all tenants and priorities wait."""
        jobs = []
        for at in range(number):
            tenant = TENANTS[min(len(TENANTS) - 1, int(self.random.expovariate(0.5)))]
            jobs.append(
                a_job(
                    f"order-{at:05d}@{tenant}",
                    tenant=tenant,
                    priority=at % 3,
                    prompt_tokens=self.random.randrange(40, 900),
                    output_tokens=256,
                )
            )
        for first in range(0, number, 500):
            await self.scripts.queue.submit_many(jobs[first : first + 500], WIDE)

    async def hold_jobs(self, each: int) -> None:
        """Let every worker hold jobs, counted by tenant and priority."""
        keys, redis = self.scripts.keys, raw(self.scripts)
        async with redis.pipeline(transaction=False) as pipe:
            for name in self.workers:
                for at in range(each):
                    tenant = TENANTS[at % len(TENANTS)]
                    pipe.hset(keys.of("held", name), f"held-{name}-{at}@{tenant}", 1)
                    pipe.hincrby(keys.of("holding", str(at % 3)), tenant, 1)
            await pipe.execute()

    async def add_ended(self, number: int, over_s: float) -> None:
        """Let jobs have ended, spread over the last seconds, a few of them badly."""
        now_ms = await server_ms(self.scripts.redis)
        rows = []
        for at in range(number):
            ended = now_ms - int(over_s * 1000 * (number - at) / number)
            rows.append(msgspec.msgpack.encode(self._row(at, ended)))
        await raw(self.scripts).rpush(self.scripts.keys.of("recent"), *rows)

    def _row(self, at: int, ended: int) -> list[object]:
        draw = self.random
        output, tenant = draw.randrange(40, 400), TENANTS[at % len(TENANTS)]
        first = ended - int(output * draw.uniform(18, 26))
        pulled = first - draw.randrange(120, 420)
        created = pulled - int(draw.expovariate(1 / 350))
        owner = draw.choice(self.workers or ["gpu-01-0"])
        stamps, lived = f"p{pulled}:{owner}", f"a20 f{first - pulled}"
        reason, code = ("failed", "grammar") if at % 97 == 0 else ("stop", "")
        prompt = draw.randrange(200, 1400)
        name = f"order-{90_000 + at}@{tenant}"
        ends = [created, ended, reason, code, prompt, prompt // 2, output, 0, owner, stamps]
        ends.append(lived)
        return [1, name, tenant, at % 3, *ends]
