"""A pool under one random schedule: who acts next, what goes wrong, how it heals, what must hold.

Server and network fail as real ones do, at the level of keys: a restart drops connections, scripts
and leases; a rollback brings an earlier state of all keys back; time passes for every TTL and for
the scripts, on no clock but the schedule's. Requests land late by seconds, never by more than
`MAX_LATE_S`.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from storm.audit import Audit, Grave, Violation
from storm.clients import StormClients
from storm.keys import PoolKeys, Snapshot
from storm.network import Clock, Network
from storm.reader import StormReader
from storm.sleep import Sleepers
from storm.weather import CLIMATES, Weather
from storm.worker import IN_ONE_TURN, KILLER, MAX_HELD, StormWorker

if TYPE_CHECKING:
    from typing import Any

    from storm.actor import Actor

    from tokenbus.producer.contract.events import Event, Finish

NUM_STEPS = 260
MAX_SETTLE_STEPS = 4000
MAX_LATE_S = 4.0
# Between two steps; while it heals, or somebody oversleeps, time passes faster.
STEP_S, SETTLE_STEP_S, DREAM_STEP_S = 0.03, 0.25, 0.1
# A power cut takes about the last second.
ROLLBACK_S = 1.5
# Every third schedule has a job that kills engines, and in most a few engines die by accident.
KILLER_EVERY, MAX_ACCIDENTS, ACCIDENT_RATE = 3, 2, 0.008
# Of a job in the batch of complete_many.lua.
COLUMNS = 7
# Longer than log and result are kept.
AGES_S = (130.0, 4000.0)


@dataclass
class World:
    """Everything that acts on one pool, and the powers above it."""

    path: str
    pool: str
    seed: int
    skips: frozenset[str] = frozenset()
    workers: list[StormWorker] = field(default_factory=list)
    readers: list[StormReader] = field(default_factory=list)
    lost: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    num_born: int = 0
    num_accidents: int = 0

    def __post_init__(self) -> None:
        """Prepare the network."""
        self.chance = random.Random(self.seed)
        # Every other pool completes jobs in steps, as on a cluster.
        if self.seed % 2:
            self.skips |= {IN_ONE_TURN}
        self.weather = CLIMATES[self.seed % len(CLIMATES)]
        self.clock = Clock()
        self.audit = Audit()
        self.network = Network(self.path, self.pool, self.chance, self.clock)
        self.network.on_sent = self._on_sent
        self.network.on_done = self._on_done
        self._standing: dict[str, list[tuple[bytes, list[bytes]]]] = {}
        self.network.on_event = self._on_event
        self.keys = PoolKeys(self.network.wire, self.pool)
        self.clients = StormClients(
            self.network, self.chance, self.clock, self.pool, self.skips,
            self._on_accepted, self._on_cancelled,
        )  # fmt: skip
        self.audit.tenants = self.clients.tenants
        self.sleepers = Sleepers(self.network, self.chance, self._may_sleep, self._age)
        self._accidents = random.Random(f"accidents of {self.seed}")
        self._owed_s = 0.0
        self._let_expire()
        self._snapshot: Snapshot | None = None

    async def run(self) -> None:
        """Run the schedule and let everything heal. Raises: Violation, or what an actor died of."""
        # What earlier schedules left there is none of this one's.
        self.network.wire.run("SCRIPT", "FLUSH")
        try:
            for _ in range(2 + self.chance.randrange(3)):
                self._bear()
            for _ in range(NUM_STEPS):
                self.pass_time(DREAM_STEP_S if self.sleepers.is_dreaming else STEP_S)
                self.sleepers.step()
                self._have_accident()
                if self.chance.random() < 0.14:
                    self._happen()
                else:
                    self._settle_one()
                await self._breathe()
            await self._heal()
        finally:
            await self._end()

    def _happen(self) -> None:
        """Let one thing happen that no actor asked for."""
        events = [
            (self.clients.submit, 5),
            (self.clients.cancel, 2),
            (self._kill, 1),
            (self._pause, 2),
            (self.sleepers.wake, 4),
            (self._read_again, 2),
            (self._let_late_land, 5),
            (self._wait, 3),
        ]
        if Weather.RESTARTS in self.weather:
            events.append((self._restart, 1))
        if Weather.AGES in self.weather:
            events += [(self._age, 1), (self._cancel_and_oversleep, 4)]
        if Weather.ROLLBACKS in self.weather:
            events += [(self._remember, 2), (self._roll_back, 2)]
        acts, weights = zip(*events, strict=True)
        self.chance.choices(acts, weights)[0]()

    def _settle_one(self) -> None:
        calls = [call for call in self.network.pending if not call.actor.is_paused]
        if calls:
            weights = [call.weight for call in calls]
            self.network.settle(self.chance.choices(calls, weights)[0])

    async def _breathe(self) -> None:
        """Let every actor run until it waits for the schedule again."""
        for _ in range(3):
            await asyncio.sleep(0)

    def pass_time(self, seconds: float) -> None:
        """Move all clocks on. Raises: Violation if a log expires that is not whole."""
        self.clock.now_s += seconds
        self._owed_s += seconds
        if self._owed_s > 0.25:
            self._let_expire()

    def _let_expire(self) -> None:
        """Let the server's time go as far as ours; a log that expires is looked at once more."""
        owed_s, self._owed_s = self._owed_s, 0.0
        for grave in self.keys.pass_time(owed_s, self.clock.now_s):
            self.audit.bury(grave)

    def _bear(self) -> None:
        self.num_born += 1
        name = f"w{self.num_born}"
        self.workers.append(
            StormWorker(
                name, self.network, self.chance, self.clock, self.pool, self.skips,
                kills=self.seed % KILLER_EVERY == 0,
            )
        )  # fmt: skip

    def _kill(self) -> None:
        worker = self.chance.choice(self.workers)
        self.network.note(f"{worker.name} dies")
        worker.die()
        self.workers.remove(worker)
        self._bear()

    def _have_accident(self) -> None:
        """Let an engine die now and then that is not to blame on any job."""
        if self.num_accidents < MAX_ACCIDENTS and self._accidents.random() < ACCIDENT_RATE:
            self.num_accidents += 1
            worker = self._accidents.choice(self.workers)
            self.network.note(f"the engine of {worker.name} dies")
            worker.lose_engine()

    def _pause(self) -> None:
        self.sleepers.fall_asleep(self.chance.choice(self.workers).actor)

    def _cancel_and_oversleep(self) -> None:
        self.clients.cancel()
        self.sleepers.oversleep()

    def _read_again(self) -> None:
        if self.readers:
            self.chance.choice(self.readers).come_again()

    def _let_late_land(self) -> None:
        self.network.deliver_late(self.chance.random(), self.clock.now_s - MAX_LATE_S)

    def _wait(self) -> None:
        self.pass_time(self.chance.choice((0.5, 2.0, 6.0)))

    def _may_sleep(self) -> list[Actor]:
        return [worker.actor for worker in self.workers] + self.clients.actors

    def _actors(self) -> list[Actor]:
        workers = [worker.actor for worker in self.workers]
        return workers + [reader.actor for reader in self.readers]

    def _restart(self) -> None:
        """Let the server die and come back with everything but scripts and volatile keys."""
        self.network.note("the server restarts")
        self.network.break_all(self._actors())
        self.keys.forget_volatile()

    def _age(self) -> None:
        """Let the whole pool sleep for longer than results are kept."""
        seconds = self.chance.choice(AGES_S)
        self.network.note(f"{seconds:g} s pass")
        self.network.answer_early([call.actor for call in self.network.pending])
        self.network.late.clear()
        self.forgotten |= self.audit.ended
        self.pass_time(seconds)

    def _remember(self) -> None:
        self.pass_time(0.3)
        self._snapshot = Snapshot(self.clock.now_s, self.keys.dump(), self.audit.copy())

    def _roll_back(self) -> None:
        """Let the server come back without what it was told since the snapshot."""
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None or self.clock.now_s - snapshot.at_s > ROLLBACK_S:
            return
        self.network.note("the server loses its last second")
        self.network.break_all(self._actors())
        self.keys.restore(snapshot.values)
        self.audit = snapshot.audit
        self._owed_s = self.clock.now_s - snapshot.at_s
        self._let_expire()
        if self.chance.random() < 0.5:
            self.keys.forget_volatile()
        self.lost |= {job for job in self.clients.accepted if not self.keys.knows(job)}

    def _on_sent(self, name: str, args: tuple[Any, ...]) -> None:
        """Look at the logs that a completion may take away."""
        if name == "complete_many":
            jobs = msgspec.msgpack.decode(args[-1])[::COLUMNS]
            self._standing = {job: self.keys.log(job) for job in jobs}

    def _on_done(self, name: str, args: tuple[Any, ...], answer: Any) -> None:
        """Look at what a script has just done."""
        if name == "complete_many":
            items = msgspec.msgpack.decode(args[-1])
            jobs, charges = items[::COLUMNS], items[2::COLUMNS]
            for job_id, actual, is_done in zip(jobs, charges, answer[0], strict=True):
                if is_done == 1:
                    self.audit.completed(job_id, actual)
                entries = self._standing[job_id]
                if entries and not self.keys.log(job_id):
                    self.audit.bury(Grave(job_id, is_done == 1, entries))
                    self.audit.compare(job_id, entries, self.keys.result(job_id))
        if name == "requeue" and answer != b"refused" and int(args[9]):
            self.audit.crashed(args[5], args[11], int(args[14]) + int(args[15]))
        if name == "cancel" and answer[0] == b"held":
            self.audit.cancelled.add(args[4])
        if name == "pull" and answer[1]:
            again = self.audit.cancelled & {job[0].decode() for job in answer[1]}
            if again:
                raise Violation(f"{again} were cancelled and are pulled again")
            num_held = self.keys.num_held(args[4])
            if num_held > MAX_HELD:
                raise Violation(f"{args[4]} holds {num_held} jobs and has pages for {MAX_HELD}")

    def _on_cancelled(self, job_id: str, status: str) -> None:
        """Whoever is told that a job has ended can rely on it."""
        if status in ("done", "ended") and job_id not in self.audit.ended:
            raise Violation(f"the cancel of {job_id} was answered {status}, which it is not")

    def _on_accepted(self, job_id: str) -> None:
        self.readers.append(StormReader(job_id, self.network, self.pool))

    def _on_event(self, channel: str, event: Event) -> None:
        """Hand an event to whoever listens; a log gets one end."""
        if event.finish is not None:
            if event.job_id in self.audit.ended:
                raise Violation(f"{event.job_id} has two terminal events")
            self.audit.ended.add(event.job_id)
            self._judge(event.job_id, event.finish)
        for reader in self.readers:
            reader.socket_reader.hear(channel, event)

    def _judge(self, job_id: str, finish: Finish) -> None:
        """Only a killer is found guilty, and it ends in no other way by itself.

        Or a job that accidents have struck so often that it looks like one.
        """
        is_killer = job_id == KILLER and self.seed % KILLER_EVERY == 0
        is_guilty = finish.error is not None and finish.error.code == "poison"
        if is_guilty and not is_killer and not self.audit.is_struck(job_id):
            raise Violation(f"{job_id} ended as poison and kills no engine")
        if is_killer and finish.reason == "stop":
            raise Violation(f"{job_id} kills every engine and came to its end")

    async def _heal(self) -> None:
        """Mend the network, leave some worker alive, and wait until nothing is left to do."""
        self.network.note("the network heals")
        self.network.fault_rate = 0.0
        self.sleepers.wake_all()
        self.network.deliver_late(1.0, self.clock.now_s - MAX_LATE_S)
        for worker in self.workers.copy():
            if self.chance.random() < 0.7:
                worker.die()
                self.workers.remove(worker)
        self._bear()
        for step in range(MAX_SETTLE_STEPS):
            self.pass_time(SETTLE_STEP_S)
            self._settle_one()
            await self._breathe()
            if step % 20 == 19 and self._is_at_rest():
                return
        readers = [reader.job_id for reader in self.readers if not reader.is_done]
        raise Violation(f"no rest: {self.keys.at_work()}, readers of {readers}")

    def _is_at_rest(self) -> bool:
        for worker in self.workers:
            for task in worker.tasks:
                if task.done():
                    task.result()
        return (
            self.clients.are_done
            and all(reader.is_done for reader in self.readers)
            and not self.keys.at_work()
        )

    async def _end(self) -> None:
        """Stop all actors and delete all keys."""
        for worker in self.workers:
            worker.die()
        tasks = [reader.task for reader in self.readers] + self.clients.tasks
        tasks += [task for worker in self.workers for task in worker.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        """Delete the pool's keys and let the server go."""
        self.keys.delete()
        self.network.close()
