"""A follower's side of its group: it joins, and launches the steps that rank 0 tells it of."""

from __future__ import annotations

import time
from threading import Thread
from typing import TYPE_CHECKING, NoReturn, Protocol

import torch

from tokenbus.engine.child_process import receive_message, send_message
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.parallel.collective import join
from tokenbus.engine.parallel.followed_sampling import FollowedSampling
from tokenbus.engine.parallel.group import RankGroup
from tokenbus.engine.parallel.group_memory import GroupMemory
from tokenbus.engine.parallel.orders import PROBE, Followed
from tokenbus.engine.parallel.topology import bind_to, device_of_rank
from tokenbus.engine.parallel.watch import BEAT_S

if TYPE_CHECKING:
    import socket

    from tokenbus.engine.scheduling.plan import StepPlan

# On a GPU the next order comes while the last one is computed; on a CPU spinning takes a core from
# a rank that computes.
_SPIN_S = {"cuda": 5e-3, "cpu": 0.0}


class Launcher(Protocol):
    """What a follower asks of its runner."""

    def launch(self, plan: StepPlan) -> object:
        """Launch a step."""
        ...

    def model_is_sound(self) -> bool:
        """Compute what the question takes."""
        ...


class FollowingGroup(RankGroup):
    """The group as a follower has it."""

    def __init__(self, memory: int, sock: socket.socket) -> None:
        """Hear from rank 0 what is to be run; `meet` joins."""
        rank, self._store, seed, told = receive_message(sock)
        self.config = EngineConfig(**told)
        self._sock = sock
        self._shared = GroupMemory(memory, rank, self.config.tensor_parallel)
        Thread(target=self._beat, name="beat", daemon=True).start()
        self.device = device_of_rank(self.config, rank)
        self.sampling = FollowedSampling()
        # Random weights that all ranks hold are drawn alike.
        torch.manual_seed(seed)

    def meet(self) -> None:
        """Join the other ranks."""
        bind_to(self.device)
        send_message(self._sock, ["here"])
        self.collective = join(self.device, self._store, self._shared, lambda error: error)

    def loaded(self) -> None:
        """Tell that this rank has its weights."""
        send_message(self._sock, ["loaded"])

    def follow(self, runner: Launcher) -> NoReturn:
        """Launch what rank 0 tells. Raises: ConnectionError once rank 0 has hung up."""
        followed = Followed()
        spin_s = _SPIN_S[self.device.type]
        while True:
            order = self._shared.receive(self._sock, spin_s)
            if order == PROBE:
                runner.model_is_sound()
                continue
            step = followed.step(order)
            self.sampling.told = step.sampling
            runner.launch(step.plan)

    def _beat(self) -> None:
        while True:
            self._shared.beat()
            time.sleep(BEAT_S)
