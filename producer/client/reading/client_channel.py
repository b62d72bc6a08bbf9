"""The client channel: all jobs that one client submits are heard on one channel a shard.

The client draws a secret, subscribes to `cli:<secret>` and says it with what it submits; workers
publish there what they publish on the job's own channel. So a job that was submitted after the
subscription costs no subscription, no look at its log and no timer of its own.

The name lets its holder hear the jobs, so it is told to the server alone.
It is one file because what is kept of a job, who reads it and the channel's state change together.
"""

from __future__ import annotations

import secrets
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING

from tokenbus.producer.client.reading.kept_job import KeptJob
from tokenbus.producer.client.reading.subscription import Subscription
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.contract.keys import LISTEN_BYTES, shard_of
from tokenbus.producer.errors import SchemaMismatch, ServerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from tokenbus.producer.client.reading.hub import SubscriptionHub
    from tokenbus.producer.client.reading.kept_job import Waiter
    from tokenbus.producer.client.reading.silence_watch import SilenceWatch
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.contract.new_job import NewJob

# What was heard of jobs that nobody reads yet is kept for so long and, all together, for so many
# times the tokens of one stream (16: 64k tokens by default, about 25 MB); so many jobs are waited
# for, at about 400 bytes each.
_KEPT_S = 60.0
_KEPT_STREAMS = 16
_MAX_KEPT_JOBS = 65_536
# Submits do not wait for the channel for so long after it could not be had.
_HURRY_S = 30.0
# A client that has read none of so many jobs in a row does not read: it stops listening.
_MAX_UNREAD = 512
# Of a stored request that asks for what no event tells; inside a text the quotes are escaped.
_ASKED_OF_PROMPT = '"prompt_logprobs":'


class ClientChannel:
    """Keeps what is heard of the jobs of a client, and hands each to the first who reads it."""

    def __init__(
        self, hub: SubscriptionHub, keys: Keys, watch: SilenceWatch, max_tokens: int
    ) -> None:
        """Listen through `hub`; `watch` looks after the streams that hear nothing."""
        self._hub = hub
        self._watch = watch
        self._keys = keys
        self._max_tokens = max_tokens
        self._secret = secrets.token_urlsafe(LISTEN_BYTES)
        self._shards: dict[int, _Shard] = {}
        # By the text of the address: jobs that nobody reads yet, and jobs that somebody does.
        self._kept: dict[str, KeptJob] = {}
        self._read: dict[str, KeptJob | Subscription] = {}
        # Of which kept jobs something was heard, and since when; some are read or gone by now.
        self._heard: deque[tuple[float, str, KeptJob]] = deque()
        self._num_kept_tokens = 0
        self._num_unread = 0
        # Whether a worker was ever heard here: those of earlier releases are not.
        self.is_proven = False
        # No submit waits for a subscription before, because one was not confirmed lately.
        self._hurries_until = 0.0
        # Whether the user of the server has the rights.
        self.is_allowed = True

    @property
    def listen(self) -> str:
        """Return the secret that jobs are submitted with; empty for who does not hear them."""
        is_used = self.is_allowed and self._num_unread <= _MAX_UNREAD
        return self._secret if is_used else ""

    async def begin(self, shards: Iterable[int], timeout_s: float) -> None:
        """Listen to shards before jobs are submitted to them; what fails is not heard.

        With a `timeout_s` of 0 it does not wait: what is submitted at once may be missed.
        Raises: ClientClosed, WrongEventLoop.
        """
        if not self.listen:
            return
        names = [(self._shards.get(shard) or self._begin(shard)).name for shard in shards]
        now = monotonic()
        if not timeout_s or now < self._hurries_until:
            return
        try:
            for name in names:
                if not self._hub.is_live(name):
                    await self._hub.wait_for(name, max(0.0, now + timeout_s - monotonic()))
        except ServerError:
            self._hurries_until = monotonic() + _HURRY_S

    def _begin(self, shard: int) -> _Shard:
        name = self._keys.client_channel(shard, self._secret).encode()
        channel = _Shard(self, shard, name)
        self._hub.listen(name, channel)
        self._shards[shard] = channel
        return channel

    def expect(self, new: NewJob) -> None:
        """Keep what will be heard of a job that is about to be submitted."""
        if not new.listen:
            return
        shard = shard_of(new.job_id)
        job = KeptJob(
            JobAddress.parse(new.job_id),
            shard,
            new.version,
            self._max_tokens,
            is_told_whole=_ASKED_OF_PROMPT not in new.request,
        )
        job.has_hole = not self._is_live(shard)
        self._kept[new.job_id] = job
        if len(self._kept) > _MAX_KEPT_JOBS:
            oldest, kept = next(iter(self._kept.items()))
            if kept.heard_at < monotonic() - _KEPT_S:
                self._leave_unread(oldest)
            else:
                self.drop(oldest)

    def drop(self, address: str) -> None:
        """Keep nothing of a job that nobody has submitted, or that is too old."""
        job = self._kept.pop(address, None)
        if job is not None:
            self._num_kept_tokens -= job.num_tokens

    def keeps(self, address: JobAddress) -> bool:
        """Tell whether what is heard of a job is kept for who reads it first."""
        return address.text in self._kept

    def subscribe(self, address: JobAddress) -> Subscription | None:
        """Return a subscription that brings all events of a job from the first on, once a job.

        None where they were not kept, or cannot come. One that `has_hole` brings only what is heard
        from now on.
        """
        job = self._take(address.text)
        if job is None:
            return None
        name = self._shards[job.shard].name if job.shard in self._shards else b""
        subscription = self._watch.subscription(
            name, self._max_tokens, address, self._let_go, lambda: self.is_proven
        )
        subscription.version = job.version
        for event in job.events:
            subscription.put(event)
        if job.end is not None:
            subscription.put(job.end)
        if job.has_hole:
            subscription.break_off()
        self._read[address.text] = subscription
        return subscription

    def collect(self, address: JobAddress, waiter: Waiter) -> KeptJob | None:
        """Return what is kept of a job, once; without an end its `waiter` is told of it."""
        job = self._take(address.text)
        if job is not None and job.end is None:
            job.waiter = waiter
            self._read[address.text] = job
        return job

    def release(self, job: KeptJob) -> None:
        """Hear no more of a job that was collected. Safe to repeat."""
        job.waiter = None
        if self._read.get(job.address.text) is job:
            del self._read[job.address.text]

    def _take(self, key: str) -> KeptJob | None:
        """Take a job from those that nobody reads, if what follows is going to be heard."""
        self._num_unread = 0
        job = self._kept.get(key)
        if job is None:
            return None
        self.drop(key)
        return job if job.end is not None or self._is_live(job.shard) else None

    def _let_go(self, subscription: Subscription) -> None:
        key = subscription.address.text
        if self._read.get(key) is subscription:
            del self._read[key]

    def _is_live(self, shard: int) -> bool:
        channel = self._shards.get(shard)
        return channel is not None and self._hub.is_live(channel.name)

    def hear(self, body: bytes) -> None:
        """Take a message of any shard; that of a stranger is left out."""
        try:
            event = parse_message(body)
        except SchemaMismatch:
            # A worker of a later version: the records of the jobs tell.
            for channel in tuple(self._shards.values()):
                self.break_off(channel)
            return
        except (ValueError, KeyError, TypeError):
            return
        self.is_proven = True
        key = event.job_id
        if event.tenant != DEFAULT_TENANT:
            key = JobAddress(key, event.tenant).text
        job = self._read.get(key)
        if job is None:
            self._keep(key, event)
        elif event.version == job.version:
            job.put(event)

    def _keep(self, key: str, event: Event) -> None:
        job = self._kept.get(key)
        if job is None or event.version != job.version:
            return
        num_tokens = job.num_tokens
        if not job.has_hole and not num_tokens:
            self._heard.append((monotonic(), key, job))
        job.put(event)
        self._num_kept_tokens += job.num_tokens - num_tokens
        if job.has_hole and job.end is not None:
            self._leave_unread(key)
        self._trim()

    def _trim(self) -> None:
        """Forget what was kept for too long, or is too much."""
        heard, oldest = self._heard, monotonic() - _KEPT_S
        most_tokens = _KEPT_STREAMS * self._max_tokens
        while heard and (heard[0][0] < oldest or self._num_kept_tokens > most_tokens):
            _, key, job = heard.popleft()
            if self._kept.get(key) is not job:
                continue
            self._num_kept_tokens -= job.num_tokens
            job.break_off()
            if job.end is not None:
                self._leave_unread(key)

    def _leave_unread(self, key: str) -> None:
        """Forget a job that has ended: its log or result tells all of it."""
        self.drop(key)
        self._num_unread += 1
        if self._num_unread > _MAX_UNREAD and not self._read:
            self._stop()

    def _stop(self) -> None:
        """Listen to nothing until somebody reads again."""
        for channel in self._shards.values():
            self._hub.unlisten(channel.name)
        self._shards.clear()
        self._kept.clear()
        self._heard.clear()
        self._num_kept_tokens = 0

    def break_off(self, channel: _Shard) -> None:
        """Let every job of a shard be read from its log: what was heard may lack something."""
        for job in self._kept.values():
            if job.shard == channel.shard and job.end is None:
                self._num_kept_tokens -= job.num_tokens
                job.break_off()
        waiters: set[Waiter] = set()
        for reader in tuple(self._read.values()):
            if isinstance(reader, KeptJob):
                if reader.shard == channel.shard and reader.waiter is not None:
                    reader.break_off()
                    waiters.add(reader.waiter)
            elif reader.channel == channel.name:
                reader.break_off()
        for waiter in waiters:
            waiter.missed()

    def fail(self, channel: _Shard, error: Exception) -> None:
        """Note that a shard is not heard any more; jobs that are submitted later try again."""
        self._hub.unlisten(channel.name)
        self._shards.pop(channel.shard, None)
        self.break_off(channel)
        for reader in tuple(self._read.values()):
            if isinstance(reader, Subscription):
                reader.fail(error)
            elif reader.waiter is not None:
                reader.waiter.failed(error)


class _Shard:
    """The client channel of one shard, as the hub knows it."""

    __slots__ = ("_owner", "hear", "name", "shard")

    def __init__(self, owner: ClientChannel, shard: int, name: bytes) -> None:
        self._owner = owner
        self.shard = shard
        self.name = name
        # A message costs no call in between.
        self.hear: Callable[[bytes], None] = owner.hear

    def break_off(self) -> None:
        """Note that messages are missing."""
        self._owner.break_off(self)

    def fail(self, error: Exception) -> None:
        """Note that nothing comes any more."""
        self._owner.fail(self, error)
