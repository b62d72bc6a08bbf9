"""Rank 0's side of a group: it starts the followers, tells them each step, and ends with them."""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import subprocess
import sys
import time
import weakref
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import torch

from tokenbus.engine import errors
from tokenbus.engine.child_process import receive_message, send_message
from tokenbus.engine.errors import EngineError, RequestRejected
from tokenbus.engine.parallel.collective import join
from tokenbus.engine.parallel.group import RankGroup
from tokenbus.engine.parallel.group_memory import GroupMemory, open_memory, open_store
from tokenbus.engine.parallel.orders import PROBE, OrderBook
from tokenbus.engine.parallel.topology import bind_to, device_of_rank, told
from tokenbus.engine.parallel.watch import LOOK_S, SILENT_S, Pulse, RankWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.sampling.plan import SamplingPlan
    from tokenbus.engine.scheduling.plan import StepPlan

_log = logging.getLogger(__name__)

_COMMAND = (sys.executable, "-P", "-m", "tokenbus.engine.parallel.follower")
# Multicast over NVLink is off, no handshake is left to the capture of a graph, and torch's monitor
# looks for no order to write down what NCCL did: it would wait for files of a group that is over.
NCCL_SETTINGS = {
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_GRAPH_REGISTER": "0",
    "NCCL_RUNTIME_CONNECT": "0",
    "NCCL_SOCKET_IFNAME": "lo",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "0",
}
# Device time of a prompt token, at the very most, by which a long step is told from a dead one.
_TOKEN_S = 1e-3
_END_S = 2.0


class LeadingGroup(RankGroup):
    """The group as rank 0 has it: its steps are what the followers launch."""

    def __init__(self, config: EngineConfig) -> None:
        """Start a process for every other rank; `meet` waits for them."""
        self._size = config.tensor_parallel
        self._processes: list[subprocess.Popen[bytes]] = []
        self._sockets: list[socket.socket] = []
        # What was begun, which is ended in reverse.
        self._begun = ExitStack()
        self._begun.callback(_end, self._processes, self._sockets)
        self._end = weakref.finalize(self, self._begun.close)
        memory, (store, self._store) = open_memory(), open_store()
        try:
            self._shared = GroupMemory(memory, 0, self._size)
            for _ in range(1, self._size):
                self._spawn(memory, store)
        finally:
            os.close(memory)
        self._watch = RankWatch(self._shared, self._processes, self._sockets)
        self._book = OrderBook()
        self._longest_s = SILENT_S
        for rank, sock in enumerate(self._sockets, 1):
            send_message(sock, [rank, self._store, torch.initial_seed(), asdict(config)])

    @property
    def follower_pids(self) -> tuple[int, ...]:
        """Process ids of the other ranks, in their order."""
        return tuple(process.pid for process in self._processes)

    def meet(self, device: torch.device) -> None:
        """Wait until all followers are there, and join them. Raises: what one of them failed of."""
        self._hear("here")
        self.collective = join(device, self._store, self._shared, self._watch.cause)
        self._begun.callback(self.collective.close)
        self._begun.callback(self._watch.stop)
        self.topology = told(self._size, device)
        _log.info("ranks.started: %s", self.topology)

    def loaded(self) -> None:
        """Wait until all ranks have their weights; from here on their loss is watched."""
        self._hear("loaded")
        self._watch.start()

    def release(self, row: int) -> None:
        """Forget whose a row is."""
        self._book.release(row)

    @contextmanager
    def step(self, plan: StepPlan, sampling: SamplingPlan) -> Iterator[None]:
        """Tell the followers of a step, and launch it inside."""
        order = self._book.order(plan, sampling)
        self._longest_s = SILENT_S + plan.num_prefill_tokens * _TOKEN_S
        with self._telling(order):
            yield

    @contextmanager
    def probe(self) -> Iterator[None]:
        """Have the followers compute what the question whether the model is sound takes."""
        with self._telling(PROBE):
            yield

    def wait(self, event: torch.cuda.Event) -> None:
        """Wait for the device, unless it waits for a rank that is lost.

        A rank that still launches, compiles or captures is not asleep: its collectives may be late.
        """
        began_at = time.monotonic()
        while not event.query():  # type: ignore[no-untyped-call] # torch has no type here
            self._watch.check()
            if time.monotonic() - began_at > self._longest_s and self._shared.all_asleep:
                self._watch.lose(0, f"waits for its device, for {self._longest_s:g} s")
            time.sleep(0)  # Other threads have the interpreter meanwhile.

    def check(self) -> None:
        """Raise RankLost if a rank was lost."""
        self._watch.check()

    def close(self) -> None:
        """End the followers."""
        self._end()

    @contextmanager
    def _telling(self, order: bytes) -> Iterator[None]:
        self._watch.check()
        try:
            self._shared.publish(order, self._sockets, self._watch.check)
            yield
        except BaseException:
            # The others are in the middle of what this rank has left.
            self._watch.lose(0, "failed amid a step")
            raise

    def _spawn(self, memory: int, store: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            fds = (memory, theirs.fileno())
            self._sockets.append(ours)
            self._processes.append(
                subprocess.Popen(
                    [*_COMMAND, str(os.getpid()), *map(str, fds)],
                    stdin=subprocess.DEVNULL,
                    pass_fds=(*fds, store),
                    process_group=0,
                    env={**os.environ, **NCCL_SETTINGS},
                )
            )

    def _hear(self, word: str) -> None:
        """Wait until every follower has said a word. Raises: what one of them failed of."""
        for rank, sock in enumerate(self._sockets, 1):
            self._await_word(rank, sock)
            try:
                said = receive_message(sock)
            except (OSError, ValueError) as error:
                raise EngineError(f"rank {rank} ended before it was {word}") from error
            if said[0] != word:
                raise _error_of(rank, *said[1:])

    def _await_word(self, rank: int, sock: socket.socket) -> None:
        """Wait until a follower says something. Raises: EngineError if it has stopped to beat."""
        pulse = Pulse(self._shared, rank)
        while not select.select([sock], [], [], LOOK_S)[0]:
            if pulse.has_stopped():
                raise EngineError(f"rank {rank} has not answered for {SILENT_S:g} s at its start")


def lead(config: EngineConfig, progress: Callable[[str, float], None] | None) -> LeadingGroup:
    """Start the group of a configuration, and return it once all ranks are there.

    Raises: RequestRejected if the device has no place for so many ranks; what a follower raised.
    """
    device = device_of_rank(config, 0)
    if device.type == "cpu" and config.num_threads is None:
        share = max(1, torch.get_num_threads() // config.tensor_parallel)
        config = replace(config, num_threads=share)
        torch.set_num_threads(share)
    if progress is not None:
        progress("starting ranks", 0.0)
    if device.type == "cuda":
        os.environ.update(NCCL_SETTINGS)
    bind_to(device)
    group = LeadingGroup(config)
    try:
        group.meet(device)
    except BaseException:
        group.close()
        raise
    return group


def _error_of(rank: int, kind: str, message: str) -> EngineError:
    """Return what a follower raised, as rank 0 raises it."""
    told = f"rank {rank}: {message}"
    made = getattr(errors, kind, None)
    if made is RequestRejected:
        field, _, reason = message.partition(": ")
        return RequestRejected(field, f"rank {rank}: {reason}")
    if isinstance(made, type) and issubclass(made, EngineError) and made is not errors.RankLost:
        with contextlib.suppress(TypeError):
            return made(told)
    return EngineError(f"rank {rank}: {kind}: {message}")


def _end(processes: list[subprocess.Popen[bytes]], sockets: list[socket.socket]) -> None:
    """Hang up on followers, and kill those that do not end by that."""
    for sock in sockets:
        sock.close()
    for process in processes:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
