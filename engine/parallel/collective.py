"""Collectives: what the ranks of a group compute together, behind one small interface.

Every rank calls the same collectives in the same order. Sums have one order whatever the number of
rows, and all ranks hold the same bits of them, so that all of them would draw the same tokens.
"""

from __future__ import annotations

import ctypes
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from datetime import timedelta
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from tokenbus.engine.errors import EngineError
from tokenbus.engine.parallel.peer_memory import open_boxes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

    from tokenbus.engine.parallel.group_memory import GroupMemory
    from tokenbus.kernels.exchange import Boxes

# The watch of rank 0 tells a rank that hangs within seconds; this is for what it cannot see.
_TIMEOUT = timedelta(minutes=30)
# How long the end of a group is waited for, and the device of it: one that takes longer waits for a
# rank that is lost.
_ABORT_S, _DEVICE_S = 5.0, 2.0
_LOOK_S = 0.01
# Ranks are on one host.
LOOPBACK = "127.0.0.1"


class Collective(ABC):
    """A rank's side of its group.

    Attributes:
        rank: of this process, 0 is the one with scheduler and sampler; size: ranks of the group.
        boxes: for sums through memory of peers, None where there is none.
    """

    rank: int
    size: int
    boxes: Boxes | None = None

    @abstractmethod
    def all_reduce(self, part: Tensor) -> Tensor:
        """Return the sum of all ranks' parts, any shape, the dtype of `part`, which may be it."""

    @abstractmethod
    def all_gather(self, part: Tensor) -> Tensor:
        """part: [M, n] of each rank -> [M, size * n], in the order of the ranks."""

    @abstractmethod
    def broadcast(self, values: Tensor) -> Tensor:
        """Return the values of rank 0, which other ranks give room of their shape for."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the group, whatever the other ranks do."""

    def new_graph(self) -> torch.cuda.CUDAGraph:
        """Return an empty graph for steps that call collectives; `close` empties it again."""
        return torch.cuda.CUDAGraph()

    def smallest(self, value: int, device: torch.device) -> int:
        """Return the least of all ranks' numbers."""
        own = torch.tensor([[value]], dtype=torch.int64, device=device)
        return int(self.all_gather(own).min())


class Alone(Collective):
    """The group of one rank: everything is there already."""

    rank, size = 0, 1

    def all_reduce(self, part: Tensor) -> Tensor:
        """Return the part."""
        return part

    def all_gather(self, part: Tensor) -> Tensor:
        """Return the part."""
        return part

    def broadcast(self, values: Tensor) -> Tensor:
        """Return the values."""
        return values

    def close(self) -> None:
        """Do nothing."""


class ProcessGroup(Collective):
    """A group over torch.distributed, without the process-wide default group of that.

    What torch raises becomes what `cause` makes of it, on rank 0 the loss of the rank behind it.
    """

    def __init__(
        self, group: Any, shared: GroupMemory, cause: Callable[[Exception], Exception]
    ) -> None:
        self.rank, self.size = shared.rank, shared.size
        self._group, self._shared, self._cause = group, shared, cause

    def all_gather(self, part: Tensor) -> Tensor:
        """part: [M, n] of each rank -> [M, size * n], in the order of the ranks."""
        return torch.cat(self._gathered(part), -1)

    def broadcast(self, values: Tensor) -> Tensor:
        """Return the values of rank 0, which other ranks give room of their shape for."""
        values = values.contiguous()
        with self._together():
            self._group.broadcast(values, 0).wait()
        return values

    def _gathered(self, part: Tensor) -> list[Tensor]:
        part = part.contiguous()
        parts = [torch.empty_like(part) for _ in range(self.size)]
        with self._together():
            self._group.allgather([parts], [part]).wait()
        return parts

    @contextmanager
    def _together(self) -> Iterator[None]:
        self._shared.enter()
        try:
            yield
        except RuntimeError as error:
            raise self._cause(error) from error
        finally:
            self._shared.leave()


class GlooGroup(ProcessGroup):
    """Ranks on a CPU; Gloo's own sums depend on the number of rows, so parts are added here."""

    def close(self) -> None:
        """Do nothing: its end waits for nobody."""

    def all_reduce(self, part: Tensor) -> Tensor:
        """Return the sum of all ranks' parts, added in float32 in the order of the ranks."""
        first, *others = self._gathered(part)
        total = first.float()
        for other in others:
            total = total + other
        return total.to(part.dtype)


class NcclGroup(ProcessGroup):
    """A GPU per rank; each element is summed once and handed to all, so that all hold its bits."""

    def __init__(
        self,
        group: Any,
        shared: GroupMemory,
        cause: Callable[[Exception], Exception],
        device: torch.device,
    ) -> None:
        super().__init__(group, shared, cause)
        self._device = device
        self._graphs: list[torch.cuda.CUDAGraph] = []
        self._is_over = Event()
        # It stands ready: an interpreter that ends starts no thread.
        self._end = Thread(target=self._let_go, name="end of ranks", daemon=True)
        self._end.start()

    def close(self) -> None:
        """Let go of the group: its threads would wait for the other ranks at the process's end.

        Where the device waits for a rank that is lost, NCCL and the end of a graph would wait too:
        they are left as they are, past the end of the interpreter.
        """
        self._is_over.set()
        self._end.join(_ABORT_S)

    def new_graph(self) -> torch.cuda.CUDAGraph:
        """Return an empty graph for steps that call collectives; `close` empties it again."""
        self._graphs.append(super().new_graph())
        return self._graphs[-1]

    def _let_go(self) -> None:
        self._is_over.wait()
        if self._device_ends():
            # NCCL waits until no graph holds its launches.
            for graph in self._graphs:
                graph.reset()
            self._group.abort()
        else:
            for held in (self._group, *self._graphs):
                _keep_to_the_last(held)

    def _device_ends(self) -> bool:
        """Tell whether the device comes to the end of what it was given."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no type here
        event.record(torch.cuda.default_stream(self._device))
        gives_up_at = time.monotonic() + _DEVICE_S
        while not event.query():  # type: ignore[no-untyped-call] # torch has no type here
            if time.monotonic() > gives_up_at:
                return False
            time.sleep(_LOOK_S)
        return True

    def all_reduce(self, part: Tensor) -> Tensor:
        """Return the sum of all ranks' parts, in place."""
        part = part.contiguous()
        with self._together():
            self._group.allreduce([part]).wait()
        return part


def _keep_to_the_last(thing: object) -> None:
    """Let a thing live until the process is gone: no end of the interpreter ends it."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))


def join(
    device: torch.device, path: str, shared: GroupMemory, cause: Callable[[Exception], Exception]
) -> Collective:
    """Join the group that meets in the file `path`; returns once all ranks have.

    Raises: EngineError where torch has no collectives for the device.
    """
    if not dist.is_available():
        raise EngineError("this torch was built without torch.distributed, which ranks need")
    # torch types these in part, and not their options.
    torch_dist: Any = dist
    store = torch_dist.FileStore(path, shared.size)
    if device.type == "cuda":
        if not dist.is_nccl_available():
            raise EngineError("this torch was built without NCCL, which ranks on GPUs need")
        options = torch_dist.ProcessGroupNCCL.Options()
        options._timeout = _TIMEOUT
        nccl = torch_dist.ProcessGroupNCCL(store, shared.rank, shared.size, options)
        group = NcclGroup(nccl, shared, cause, device)
        group.boxes = open_boxes(device, shared, store)
        return group
    options = torch_dist.ProcessGroupGloo._Options()
    options._timeout = _TIMEOUT
    options._devices = [torch_dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
    gloo = torch_dist.ProcessGroupGloo(store, shared.rank, shared.size, options)
    return GlooGroup(gloo, shared, cause)
