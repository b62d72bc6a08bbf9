"""The pool's channel of complete jobs, for callers that wait for jobs of other clients."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Protocol

from tokenbus.producer.errors import ServerError

if TYPE_CHECKING:
    from tokenbus.producer.client.reading.hub import SubscriptionHub
    from tokenbus.producer.contract.keys import Keys


class EndedListener(Protocol):
    """Who wants to know which jobs are complete."""

    def completed(self, address: str) -> None:
        """Take the address of a job whose result can be read."""

    def missed(self) -> None:
        """Note that some may not have been told."""


class EndedChannel:
    """Tells each listener; subscribed to while there is one."""

    def __init__(self, hub: SubscriptionHub, keys: Keys) -> None:
        self._hub = hub
        self._name = keys.of("ended").encode()
        self._listeners: set[EndedListener] = set()
        # Whether the user of the server has the right.
        self.is_allowed = True

    async def join(self, listener: EndedListener, timeout_s: float) -> None:
        """Tell a listener of what is complete from now on; without success nothing is told.

        Raises: ClientClosed, WrongEventLoop.
        """
        if not self.is_allowed:
            return
        self._listeners.add(listener)
        self._hub.listen(self._name, self)
        with contextlib.suppress(ServerError):
            await self._hub.wait_for(self._name, timeout_s)

    def leave(self, listener: EndedListener) -> None:
        """Tell a listener nothing more. Safe to repeat."""
        if listener in self._listeners:
            self._listeners.discard(listener)
            if not self._listeners:
                self._hub.unlisten(self._name)

    def hear(self, body: bytes) -> None:
        """Pass an address on."""
        address = body.decode(errors="replace")
        for listener in tuple(self._listeners):
            listener.completed(address)

    def break_off(self) -> None:
        """Pass on that messages are missing."""
        for listener in tuple(self._listeners):
            listener.missed()

    def fail(self, error: Exception) -> None:  # noqa: ARG002 -- the hub's
        """Pass on that messages are missing; who listens goes on by looking."""
        self._hub.unlisten(self._name)
        self.break_off()
