"""The worker's end of the engine process: start it, talk to it, notice that it hangs or dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from typing import TYPE_CHECKING

from tokenbus.engine import errors as engine_errors
from tokenbus.worker.engine.followers import Followers
from tokenbus.worker.errors import (
    DeathCause,
    EngineDied,
    EngineStartFailed,
    SettingsInvalid,
)
from tokenbus.worker.logs import get_logger
from tokenbus.worker.messages.engine import (
    COMMANDS,
    REPORTS,
    AddRequest,
    Beat,
    EngineReady,
    EngineRefused,
    EngineStarting,
    StepRecord,
)
from tokenbus.worker.process.child import is_stopped, kill, spawn
from tokenbus.worker.process.child_output import ChildOutput
from tokenbus.worker.process.frame_receiver import FrameReceiver
from tokenbus.worker.process.frame_writer import FrameWriter
from tokenbus.worker.process.frames import frame_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import EngineLimits, EngineStats
    from tokenbus.worker.messages.engine import Command, Report, StartEngine

# A process that was killed is reaped by the kernel at once; longer means an uninterruptible wait.
_REAP_TIMEOUT_S = 5.0


class EngineLink:
    """One engine process; a dead one is never revived, a new link takes its place.

    `on_report` is called on the event loop, in the engine's order, for everything but the start-up,
    of which `on_phase` hears: what is going on, and the share of that which is done.
    """

    def __init__(
        self,
        start: StartEngine,
        on_report: Callable[[Report], None],
        on_phase: Callable[[str, float], None] = lambda *_: None,
    ) -> None:
        self._start = start
        self._on_report = on_report
        self._on_phase = on_phase
        self._process: asyncio.subprocess.Process | None = None
        self._writer: FrameWriter | None = None
        self._ready: asyncio.Future[EngineReady] | None = None
        self._died = asyncio.Event()
        self._refusal: EngineRefused | None = None
        self._ready_report: EngineReady | None = None
        self._output: ChildOutput | None = None
        self._followers = Followers()
        self._log = get_logger()
        self.stats: EngineStats | None = None
        self.paused = False
        self.moved_at = time.monotonic()

    async def start(self, timeout_s: float) -> EngineReady:
        """Spawn the process and wait until the engine is built.

        Raises: the EngineError that building it raised; SettingsInvalid for a setting it refused;
            EngineStartFailed for anything else and after the timeout.
        """
        loop = asyncio.get_running_loop()
        self._ready = loop.create_future()
        self._output = ChildOutput(lambda text: self._log.warning("engine.said", text=text))
        try:
            self._process, transport = await spawn(
                "tokenbus.worker.engine.process",
                lambda: FrameReceiver(self._receive, self._lost),
                self._output,
            )
        finally:
            self._output.began()
        self._writer = FrameWriter(transport)
        self.send(self._start)
        try:
            async with asyncio.timeout(timeout_s):
                self._ready_report = await self._ready
        except TimeoutError:
            await self.kill()
            message = f"it was not ready after {timeout_s:g} s"
            raise EngineStartFailed("TimeoutError", message) from None
        except BaseException:
            await self.kill()
            raise
        return self._ready_report

    @property
    def limits(self) -> EngineLimits:
        """Sizes of the running engine."""
        return self.ready.limits

    @property
    def ready(self) -> EngineReady:
        """What the engine said when it was built."""
        if self._ready_report is None:
            raise EngineDied("the engine is not running")
        return self._ready_report

    @property
    def is_alive(self) -> bool:
        """True until the process has hung up, or said why it ends."""
        return self._ready_report is not None and not self._died.is_set()

    @property
    def pid(self) -> int | None:
        """Process id, None before the start."""
        return self._process.pid if self._process else None

    @property
    def is_stopped(self) -> bool:
        """Tell whether a signal has stopped the process."""
        return self._process is not None and is_stopped(self._process.pid)

    def stalled_s(self) -> float:
        """Return the seconds since the engine last reported a step or an idle beat."""
        return time.monotonic() - self.moved_at

    def send(self, command: Command) -> None:
        """Queue a command; one to a dead engine is dropped, its jobs are handed back anyway."""
        if self._writer is None:
            return
        if isinstance(command, AddRequest):
            self._writer.send_soon(COMMANDS.encode(command))
        else:
            self._writer.send(COMMANDS.encode(command))

    async def wait_over(self) -> None:
        """Wait until the process has hung up, or said why it ends; devices may hold it longer."""
        await self._died.wait()

    async def wait_died(self) -> EngineDied:
        """Wait until the process ends and describe how."""
        await self.wait_over()
        status = await self._reap()
        if self._refusal is not None:
            return EngineDied(
                f"{self._refusal.kind}: {self._refusal.message}", _cause(self._refusal)
            )
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            return EngineDied(f"killed by {name}", DeathCause.SIGNAL)
        return EngineDied(f"ended with status {status}", DeathCause.EXIT)

    def end(self) -> None:
        """Kill the process, with all ranks of its group, and hear nothing more of it."""
        self._died.set()
        if self._process is not None:
            kill(self._process)
        self._followers.kill()
        if self._writer is not None:
            self._writer.close()

    async def kill(self) -> None:
        """End the process at once, with all ranks of its group, and wait for them."""
        self.end()
        await self._reap()
        await self._followers.end(_REAP_TIMEOUT_S)
        if self._output is not None:
            self._output.close()

    async def _reap(self) -> int | None:
        if self._process is None:
            return None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REAP_TIMEOUT_S):
                return await self._process.wait()
        return None

    def _receive(self, body: bytes) -> None:
        report = REPORTS.decode(body)
        match report:
            case EngineReady():
                self.moved_at = time.monotonic()
                self._followers.watch(report.follower_pids)
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(report)
                return
            case EngineRefused():
                self._refusal = report
                if self._ready_report is not None:
                    self._died.set()
                return
            case EngineStarting(phase, share):
                self._on_phase(phase, share)
                return
            case StepRecord(stats=stats):
                # Publisher processes get the bytes that came.
                report.frame = frame_of(body)
                self._move(stats, paused=False)
            case Beat(paused=paused, stats=stats):
                self._move(stats, paused=paused)
        self._on_report(report)

    def _move(self, stats: EngineStats, *, paused: bool) -> None:
        self.stats = stats
        self.paused = paused
        self.moved_at = time.monotonic()

    def _lost(self) -> None:
        self._died.set()
        if self._ready is None or self._ready.done():
            return
        refusal = self._refusal or EngineRefused("EngineDied", "its process ended; see its output")
        self._ready.set_exception(_start_error(refusal))


def _cause(refusal: EngineRefused) -> DeathCause:
    """Return what an engine died of by its last word."""
    if refusal.kind == engine_errors.RankLost.__name__:
        return DeathCause.RANK
    return DeathCause.MEMORY if _lacks_memory(refusal) else DeathCause.ERROR


def _lacks_memory(refusal: EngineRefused) -> bool:
    """Tell an engine that found no memory, by what torch, CUDA and Python call that."""
    return (
        refusal.kind in ("OutOfMemoryError", "MemoryError")
        or "out of memory" in refusal.message.lower()
    )


def _start_error(refusal: EngineRefused) -> Exception:
    """Return the error that the engine process raised on purpose, else EngineStartFailed."""
    kind = getattr(engine_errors, refusal.kind, None)
    if isinstance(kind, type) and kind is not engine_errors.RankLost:
        if issubclass(kind, engine_errors.RequestRejected):
            return SettingsInvalid(refusal.message)
        if issubclass(kind, engine_errors.EngineError):
            return kind(refusal.message)
    return EngineStartFailed(refusal.kind, refusal.message)
