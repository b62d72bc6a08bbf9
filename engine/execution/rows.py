"""Device state of rows: what a running sequence owns from its first chunk to its end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from tokenbus.engine.scheduling.sequence import Sequence


class _Twin:
    """Pinned memory of the host, as much as static memory of the device, that is copied there.

    To pin it anew for each step takes the host longer than all else that a copy takes.
    """

    def __init__(self, staged: Tensor) -> None:
        num = staged.untyped_storage().nbytes() // staged.element_size()
        self._host = torch.zeros(num, dtype=staged.dtype, pin_memory=True)
        self._values = self._host.numpy()
        self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call] # torch has no type here

    def values(self, staged: Tensor) -> NDArray[np.int64]:
        """Return what the beginning of the static memory is to hold, once the last is there."""
        self._sent.synchronize()
        return self._values[: staged.numel()].reshape(staged.shape)

    def send(self, staged: Tensor) -> None:
        """Start to copy these values to the beginning of the static memory."""
        staged.copy_(self._host[: staged.numel()].view_as(staged), non_blocking=True)
        self._sent.record()


class RowState:
    """Last sampled token and block table of every row.

    The host sends differences only: new rows, and pages that sequences got since their last launch,
    in one copy.
    Sampled tokens stay on the device on their way to the next step.

    Attributes:
        last_token: [R + 1] int64, input of the next decode step.
        block_table: [R + 1, max_pages] int32. Row R pads batches; its pages are all scratch.
        num_prompt: [R + 1] int64, prompt tokens: where the positions of drawn tokens begin.
    """

    def __init__(
        self, max_rows: int, max_pages: int, device: torch.device, *, narrow_tables: bool = False
    ) -> None:
        """Allocate `max_rows` rows; a pass takes whole tables, or cut to its longest sequence."""
        self.device = device
        self.padding_row = max_rows
        self.last_token = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self.block_table = torch.zeros((max_rows + 1, max_pages), dtype=torch.int32, device=device)
        self._max_pages = max_pages
        self._narrow_tables = narrow_tables
        self.num_prompt = torch.zeros(max_rows + 1, dtype=torch.int64, device=device)
        self._assigned: list[Sequence] = []
        self._owner: list[Sequence | None] = [None] * (max_rows + 1)
        self._num_sent = [0] * (max_rows + 1)
        # By the address of the device's memory.
        self._twins: dict[int, _Twin] = {}

    def owns(self, seq: Sequence) -> bool:
        """Tell whether the row of a sequence was set up for it."""
        return seq.row is not None and self._owner[seq.row] is seq

    def assign(self, seq: Sequence) -> None:
        """Give its row to a sequence; the device learns of it with the next `send`."""
        assert seq.row is not None
        self._owner[seq.row] = seq
        self._num_sent[seq.row] = 0
        self._assigned.append(seq)

    def release(self, row: int) -> None:
        """Forget the owner of a row."""
        self._owner[row] = None
        self._num_sent[row] = 0

    def send(self, seqs: Iterable[Sequence]) -> None:
        """Copy what the device does not know yet: new rows, and page ids of these sequences."""
        new_rows = [seq.row or 0 for seq in self._assigned]
        num_prompt = [seq.num_prompt for seq in self._assigned]
        self._assigned.clear()
        # Every sequence that decodes is looked at in every step; few have a new page.
        slots: list[int] = []
        pages: list[int] = []
        for seq in seqs:
            row = seq.row
            assert row is not None
            num_sent = self._num_sent[row]
            num_pages = len(seq.pages)
            if num_pages > num_sent:
                base = row * self._max_pages
                slots.extend(range(base + num_sent, base + num_pages))
                pages.extend(seq.pages[num_sent:])
                self._num_sent[row] = num_pages
        if not new_rows and not slots:
            return
        # Two page ids in each of the last values.
        packed = np.zeros(len(pages) + len(pages) % 2, np.int32)
        packed[: len(pages)] = pages
        known = np.array([*new_rows, *num_prompt, *slots], np.int64)
        staged = self.to_device(np.concatenate((known, packed.view(np.int64))))
        num_new = len(new_rows)
        if num_new:
            self.num_prompt.index_copy_(0, staged[:num_new], staged[num_new : 2 * num_new])
        if slots:
            at, page_ids = staged[2 * num_new : len(known)], staged[len(known) :]
            self.block_table.view(-1).index_copy_(0, at, page_ids.view(torch.int32)[: len(pages)])

    def table_width(self, num_pages: int) -> int:
        """Return how wide the block table of a pass is whose longest sequence has `num_pages`."""
        return num_pages if self._narrow_tables else self._max_pages

    def to_device(
        self, values: list[int] | NDArray[np.int64] | Tensor, dtype: torch.dtype = torch.int64
    ) -> Tensor:
        """Copy integers without waiting for the device; arrays and tensors need no loop.

        On a CPU one of this dtype and what is returned are one memory.
        """
        host = self._host(values, dtype)
        return host.to(self.device, non_blocking=True)

    def copy_into(self, staged: Tensor, values: list[int] | NDArray[np.int64] | Tensor) -> None:
        """Copy integers to where a captured pass reads them: see `writing`."""
        with self.writing(staged) as host:
            host[...] = values

    @contextmanager
    def writing(self, staged: Tensor) -> Iterator[NDArray[np.int64]]:
        """Yield what a captured pass is to read from `staged`, all to be written inside.

        It is copied there behind the block, without waiting for the device. What was sent to the
        same place before is waited for; a pass sends once.
        """
        if self.device.type != "cuda":
            yield staged.numpy()
            return
        twin = self._twins.get(staged.data_ptr())
        if twin is None:
            twin = self._twins[staged.data_ptr()] = _Twin(staged)
        yield twin.values(staged)
        twin.send(staged)

    def _host(self, values: list[int] | NDArray[np.int64] | Tensor, dtype: torch.dtype) -> Tensor:
        if isinstance(values, list):
            # Torch reads a list three times as slowly.
            values = np.array(values, np.int64)
        host = torch.as_tensor(values, dtype=dtype)
        return host.pin_memory() if self.device.type == "cuda" else host
