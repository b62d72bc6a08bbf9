"""The event loop of the blocking clients, in a thread of its own.

Where threads are greenlets of one another's thread (gevent, eventlet, monkey-patched), only one
event loop runs in all of them: asyncio notes the running loop per thread of the system. A second
client takes the loop of the first there.
"""

from __future__ import annotations

import asyncio
import threading

from tokenbus.producer.errors import WrongEventLoop

_shared: dict[asyncio.AbstractEventLoop, LoopThread] = {}


class LoopThread:
    """One event loop that runs until the last of its users has left."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._num_users = 1
        self._began = threading.Event()
        self._running: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="tokenbus-client", daemon=True)

    @classmethod
    def join(cls) -> LoopThread:
        """Start a loop, or take the one that runs where ours would.

        Raises: WrongEventLoop where that is a loop of somebody else's.
        """
        made = cls()
        made._thread.start()
        made._began.wait()
        if made._running is None:
            return made
        made._thread.join()
        made.loop.close()
        shared = _shared.get(made._running)
        if shared is None:
            raise WrongEventLoop(
                "threads are greenlets here, and an event loop runs in them already: use"
                " AsyncClient in that loop, or connect this client while none runs"
            )
        shared._num_users += 1
        return shared

    @property
    def is_last(self) -> bool:
        """Tell whether one user is left."""
        return self._num_users == 1

    def leave(self) -> None:
        """Stop the loop with its last user."""
        self._num_users -= 1
        if self._num_users:
            return
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _run(self) -> None:
        self._running = asyncio._get_running_loop()
        if self._running is not None:
            self._began.set()
            return
        _shared[self.loop] = self
        self.loop.call_soon(self._began.set)
        try:
            self.loop.run_forever()
        finally:
            _shared.pop(self.loop, None)
