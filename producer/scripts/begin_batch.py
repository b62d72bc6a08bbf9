"""First tokens of several jobs, or their whole answers, packed for one call of the begin script."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.producer.contract.events import event_head
from tokenbus.producer.contract.keys import WIRE_VERSION
from tokenbus.producer.scripts.append_batch import pack, some_tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

# Places in an item, in the order in which the script reads it; entries follow, three values each.
_LAST, _FINISH, _RESULT = 3, 6, 7


class BeginBatch:
    """Builds the argument of the begin script: a job, its entries, perhaps its end; the next job.

    Log entries and public messages come ready-made, as in appends.
    """

    __slots__ = ("_items", "num_entries")

    def __init__(self) -> None:
        self._items: list[list[Any]] = []
        self.num_entries = 0

    def __len__(self) -> int:
        """Count the jobs."""
        return len(self._items)

    def add(
        self, job_id: str, epoch: int, start: str, listen: str = "", version: int = WIRE_VERSION
    ) -> None:
        """Add a job, by its address; `start` tells this start of its worker from all others.

        `listen` is the secret of the channel of the client that submitted it, if it has one.
        """
        head = event_head(job_id, version)
        self._items.append([job_id, epoch, start, 0, listen, head, "", ""])

    def tokens(
        self,
        choice: int,
        start: int,
        text: str,
        ids: Sequence[int],
        ends: Sequence[int],
        logprobs: str = "",
    ) -> None:
        """Add an entry of the job: tokens `start`… of one choice; `logprobs` as in appends."""
        item = self._items[-1]
        epoch, head = item[1], item[5]
        last = item[_LAST] = start + len(ids) - 1
        item.append(f"{epoch}-{last}")
        item += some_tokens(head, epoch, choice, start, text, ids, ends, logprobs)
        self.num_entries += 1

    def end(self, finish: str, result: str) -> None:
        """Add the end of the job: the terminal entry behind its tokens, and its result value."""
        item = self._items[-1]
        item[_FINISH], item[_RESULT] = finish, result

    def pack(self) -> bytes:
        """Return the argument."""
        return pack(self._items)
