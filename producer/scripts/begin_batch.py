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

    Log entries and public messages come ready-made, as in appends. A second array tells of each job
    its chat and the fields with which the terminal event ends messages, where answers are messages,
    and behind them the tokens of the prompt.
    """

    __slots__ = ("_items", "_told", "num_entries")

    def __init__(self) -> None:
        self._items: list[list[Any]] = []
        self._told: dict[int, list[str | int]] = {}
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
        delta: str = "",
    ) -> None:
        """Add an entry of the job: tokens of one choice; `logprobs` and `delta` as in appends."""
        item = self._items[-1]
        epoch, head = item[1], item[5]
        last = item[_LAST] = start + len(ids) - 1
        item.append(f"{epoch}-{last}")
        item += some_tokens(head, epoch, choice, start, text, ids, ends, logprobs, delta)
        self.num_entries += 1

    def tell(self, chat: str, prompt_tokens: int) -> None:
        """Say how the answers are read, and how many tokens the prompt has, for the marker.

        `chat` is the JSON object of a chat, empty where answers are none; 0 tokens are not told.
        """
        if chat or prompt_tokens:
            self._told[len(self._items) - 1] = [chat, "", *filter(None, (prompt_tokens,))]

    def end(self, finish: str, result: str, told: str = "") -> None:
        """Add the end of the job: the terminal entry behind its tokens, and its result value.

        `told` are the fields of JSON with which the terminal event ends messages.
        """
        item = self._items[-1]
        item[_FINISH], item[_RESULT] = finish, result
        if told:
            self._told.setdefault(len(self._items) - 1, ["", ""])[1] = told

    def pack(self) -> list[bytes]:
        """Return the arguments: the jobs, and what is told of them where anything is."""
        if not self._told:
            return [pack(self._items)]
        told = [self._told.get(number, ["", ""]) for number in range(len(self._items))]
        return [pack(self._items), pack(told)]
