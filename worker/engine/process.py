"""The engine process owns the engine and the GPU; it knows neither Redis nor text.

It runs as `python -m tokenbus.worker.engine.process FD PARENT_PID`. It ends when its socket closes,
when its parent dies (PR_SET_PDEATHSIG, where the platform has it), or when the engine raises, which
it reports.
Flow control is by credit: every delivered token takes room, every token the log confirmed returns
it. Past the soft bound no request is admitted while decode goes on; past the hard one the engine
pauses.

It is one file because it is one process: what it is told, what it reports, and how it starts.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
import time
import traceback
from array import array
from typing import TYPE_CHECKING

from tokenbus.engine.errors import EngineError, RequestRejected, SequenceTooLong
from tokenbus.engine.types import travelling
from tokenbus.producer import gc
from tokenbus.worker.engine.phase_teller import PhaseTeller
from tokenbus.worker.engine.socket_reader import SocketReader
from tokenbus.worker.messages.engine import (
    COMMANDS,
    HARD_BACKLOG_TOKENS,
    REPORTS,
    SOFT_BACKLOG_TOKENS,
    AbortRequest,
    AddRequest,
    Beat,
    Command,
    Credit,
    DropAnswers,
    EngineReady,
    EngineRefused,
    LearnAnswer,
    Report,
    RequestRefused,
    StartEngine,
    pack_step,
)
from tokenbus.worker.process.child import (
    die_with_parent,
    die_with_socket,
    ignore_signals,
    leave,
)
from tokenbus.worker.process.frames import FrameReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.types import Request
    from tokenbus.worker.engine.engine_like import EngineLike
    from tokenbus.worker.engine.step_log import StepLog

# A tenth of the shortest lease, so that an idle engine is never taken for a hung one.
BEAT_INTERVAL_S = 0.5

# While every request left waits for its grammar to compile.
STALL_POLL_S = 0.005


class EngineLoop:
    """Feeds commands to the engine between steps and sends one record per step."""

    def __init__(
        self,
        *,
        engine: EngineLike,
        sock: socket.socket,
        frames: FrameReader,
        step_log: StepLog | None = None,
        soft_backlog_tokens: int = SOFT_BACKLOG_TOKENS,
        hard_backlog_tokens: int = HARD_BACKLOG_TOKENS,
    ) -> None:
        self._engine = engine
        self._step_log = step_log
        self._sock = sock
        self._socket_reader = SocketReader(sock)
        self._frames = frames
        self._unsent = bytearray()
        self._held_back: dict[int, Request] = {}
        self._backlog_tokens = 0
        self._soft_backlog_tokens = soft_backlog_tokens
        self._hard_backlog_tokens = hard_backlog_tokens
        self._beat_at = 0.0

    def run(self) -> None:
        """Step until the worker closes its end of the socket."""
        connected = True
        while connected:
            paused = self._backlog_tokens >= self._hard_backlog_tokens
            idle = paused or not self._engine.has_work
            if idle or self._engine.is_stalled:
                self._beat(paused)
                self._flush(wait=idle)
                self._socket_reader.wait(BEAT_INTERVAL_S if idle else STALL_POLL_S)
            connected = self._take_commands()
            self._admit_held_back()
            if self._engine.has_work and not paused:
                began_at = time.monotonic()
                with self._socket_reader.listening():
                    output = self._engine.step()
                now = time.monotonic()
                record = pack_step(output, now, now - began_at)
                self._backlog_tokens += len(record.token_ids)
                self._send(record)
                if self._step_log is not None:
                    self._step_log.stepped(output, now)

    def _take_commands(self) -> bool:
        """Apply what has arrived; return False at the end of the stream."""
        for chunk in self._socket_reader.take():
            if not chunk:
                return False
            for body in self._frames.feed(chunk):
                self._apply(COMMANDS.decode(body))
        return True

    def _apply(self, command: Command) -> None:
        match command:
            case AddRequest(request):
                self._held_back[request.request_id] = command.unpacked()
            case AbortRequest(request_id, choice):
                if self._held_back.pop(request_id, None) is None:
                    self._engine.abort(request_id, choice)
            case Credit(num_tokens):
                self._backlog_tokens = max(0, self._backlog_tokens - num_tokens)
            case LearnAnswer(name, group, token_ids):
                self._engine.learn_answer(name, group, array("i", token_ids))
            case DropAnswers(names):
                self._engine.drop_answers(names)
            case StartEngine():
                raise ValueError("the engine is already running")

    def _admit_held_back(self) -> None:
        if not self._held_back or self._backlog_tokens >= self._soft_backlog_tokens:
            return
        is_step_due = False
        while self._held_back and not is_step_due:
            # The oldest; the others come in while the device computes.
            request = self._held_back.pop(next(iter(self._held_back)))
            try:
                is_step_due = self._engine.add(request)
                if self._step_log is not None:
                    self._step_log.added(request, time.monotonic())
            except RequestRejected as error:
                message = travelling(str(error).removeprefix(f"{error.field}: "))
                self._send(RequestRefused(request.request_id, error.field, message))
            except SequenceTooLong as error:
                self._send(RequestRefused(request.request_id, "", str(error)))

    def _beat(self, paused: bool) -> None:
        now = time.monotonic()
        if now - self._beat_at >= BEAT_INTERVAL_S / 2:
            self._beat_at = now
            self._engine.check_ranks()
            self._send(Beat(paused, self._engine.stats()))
            if self._step_log is not None:
                self._step_log.flush()

    def _send(self, report: Report) -> None:
        self._unsent += REPORTS.encode(report)
        self._flush(wait=False)

    def _flush(self, *, wait: bool) -> None:
        """Write what is left; a full socket holds up only a caller that has nothing to compute."""
        with contextlib.suppress(BlockingIOError):
            while self._unsent:
                sent = self._sock.send(self._unsent, 0 if wait else socket.MSG_DONTWAIT)
                del self._unsent[:sent]


def build(
    start: StartEngine, tell: Callable[[str, float], None] = lambda *_: None
) -> tuple[EngineLike, str | None]:
    """Build the engine that the worker asked for, and name the folder of its tokenizer.

    An alias that is not in the cache folder is fetched. The real engine, and with it torch, is
    imported only here. `tell` hears of each phase, and the share of it that is done.
    """
    if start.null is not None:
        from tokenbus.engine.null.null_engine import NullEngine

        return NullEngine(start.null), None
    if start.engine is None:
        raise ValueError("the start message names no engine")
    from tokenbus.engine.weights.model_place import find_folder
    from tokenbus.engine.weights.model_store import ALIASES, holds, pull

    config = start.engine
    if config.model in ALIASES and not holds(config.model):
        pull(config.model, tell)
    else:
        tell("looking for the model", 0.0)
    folder = find_folder(config.model, with_weights=not config.random_weights, progress=tell)
    tell("loading torch", 0.0)
    from tokenbus.engine.build import build_engine

    engine = build_engine(config, tell)
    engine.prepare_grammars()
    return engine, str(folder)


def serve(sock: socket.socket) -> int:
    """Build the engine named by the first command and step it; return the exit status."""
    threading.Thread(target=die_with_socket, args=(sock,), name="hang-up", daemon=True).start()
    frames = FrameReader()
    try:
        start = _read_start(sock, frames)
        engine, folder = build(start, PhaseTeller(sock))
        stats = engine.stats()
        num_pages = stats.free_pages + stats.evictable_pages
        ready = EngineReady(engine.limits, num_pages, folder, engine.follower_pids, engine.topology)
        sock.sendall(REPORTS.encode(ready))
        gc.freeze_startup_objects()
        step_log = _open_step_log(start.step_log)
        EngineLoop(
            engine=engine,
            sock=sock,
            frames=frames,
            step_log=step_log,
            soft_backlog_tokens=start.soft_backlog_tokens,
            hard_backlog_tokens=start.hard_backlog_tokens,
        ).run()
    except ConnectionError:
        # The worker is gone: nobody is left to report to.
        return 1
    except Exception as error:
        # The process boundary: what was raised on purpose needs no trace, the rest is a bug.
        if not isinstance(error, EngineError):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            sock.sendall(REPORTS.encode(EngineRefused(type(error).__name__, str(error))))
    return 1


def _open_step_log(folder: str | None) -> StepLog | None:
    if folder is None:
        return None
    from tokenbus.worker.engine.step_log import StepLog

    return StepLog(folder)


def _read_start(sock: socket.socket, frames: FrameReader) -> StartEngine:
    while chunk := sock.recv(1 << 16):
        for body in frames.feed(chunk):
            command = COMMANDS.decode(body)
            if not isinstance(command, StartEngine):
                raise TypeError(f"expected a start message, got {type(command).__name__}")
            return command
    raise ConnectionError("the worker hung up before it named an engine")


def main(argv: list[str]) -> int:
    """Take the socket's descriptor and the parent's pid, then serve."""
    ignore_signals()
    die_with_parent(int(argv[1]))
    return serve(socket.socket(fileno=int(argv[0])))


if __name__ == "__main__":
    leave(main(sys.argv[1:]))
