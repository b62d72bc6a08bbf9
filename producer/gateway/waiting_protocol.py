"""Connections that wait for a request no longer than they may.

uvicorn closes a connection that is idle between two requests, and waits for ever for the first one
and for the rest of one that has begun: many that say nothing take all open files.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

if TYPE_CHECKING:
    import asyncio

# Untyped: which of uvicorn's classes it is depends on what is installed.
_Protocol: Any = AutoHTTPProtocol


class WaitingProtocol(_Protocol):  # type: ignore[misc]  # see above
    """Closes a connection on which the head of a request takes longer than one may be idle.

    What still comes of a request that was answered already counts as such a head.
    """

    _clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for the first request."""
        super().connection_made(transport)
        self._begin()

    def data_received(self, data: bytes) -> None:
        """Read on, and wait for the rest of a head."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._end()
        elif self._clock is None:
            self._begin()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._end()
        super().connection_lost(exc)

    def _begin(self) -> None:
        self._clock = self.loop.call_later(self.timeout_keep_alive, self.transport.close)

    def _end(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None
