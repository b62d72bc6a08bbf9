"""The channel of one job, and the streams of this process that listen to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.errors import SchemaMismatch

if TYPE_CHECKING:
    from tokenbus.producer.client.reading.subscription import Subscription
    from tokenbus.producer.contract.events import Event


class JobChannel:
    """Hands each event of a job to every stream of it, parsed once."""

    __slots__ = ("_streams",)

    def __init__(self) -> None:
        self._streams: set[Subscription] = set()

    def add(self, stream: Subscription) -> None:
        """Let a stream hear what comes from now on."""
        self._streams.add(stream)

    def remove(self, stream: Subscription) -> bool:
        """Let a stream go; tell whether it was the last one."""
        if stream not in self._streams:
            return False
        self._streams.discard(stream)
        return not self._streams

    def hear(self, body: bytes) -> None:
        """Take a message; that of a stranger is left out."""
        try:
            event = parse_message(body)
        except SchemaMismatch:
            # Of a later version, if it is real: the record tells.
            self.break_off()
            return
        except (ValueError, KeyError, TypeError):
            return
        if len(self._streams) == 1:
            (stream,) = self._streams
            _put(stream, event)
            return
        # A task that runs on may end its stream, or open another.
        for stream in tuple(self._streams):
            _put(stream, event)

    def break_off(self) -> None:
        """Let every stream read the log."""
        for stream in tuple(self._streams):
            stream.break_off()

    def fail(self, error: Exception) -> None:
        """Let every stream raise `error` once it has taken what waits."""
        for stream in tuple(self._streams):
            stream.fail(error)


def _put(stream: Subscription, event: Event) -> None:
    """Give a stream an event of its job; version 1 does not tell the tenant.

    A job keeps its wire version, so an event of another one is of an equal name elsewhere: workers
    of version 1 publish what they do in any logical database on the channels of database 0.
    """
    address = stream.address
    if event.job_id != address.job_id or stream.version not in (None, event.version):
        return
    if event.tenant == address.tenant:
        stream.put(event)
    elif event.version == 1:
        stream.put(msgspec.structs.replace(event, tenant=address.tenant))
