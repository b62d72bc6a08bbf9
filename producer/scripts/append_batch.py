"""New tokens of several jobs, packed for one call of the append script."""

from __future__ import annotations

from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any

import msgspec

from tokenbus.producer.contract.events import event_head
from tokenbus.producer.contract.keys import WIRE_VERSION

if TYPE_CHECKING:
    from collections.abc import Sequence

# A log's belt is renewed whenever its index passes a multiple of this.
_BELT_TOKENS = 256
# Values per job, in the order in which the script unpacks them.
COLUMNS = 7

pack = msgspec.msgpack.Encoder().encode


class AppendBatch:
    """Builds the arguments of the append script.

    A job takes seven values: address (`job_id` here), first index, entry id, number of entries its
    log has, whether to renew the belt, the log entry and the public message. The server only passes
    the last two on.
    """

    __slots__ = ("_listens", "_values")

    def __init__(self) -> None:
        self._values: list[Any] = []
        self._listens: list[str] = []

    def __len__(self) -> int:
        """Count the jobs."""
        return len(self._values) // COLUMNS

    def add_one(
        self,
        job_id: str,
        epoch: int,
        index: int,
        token: tuple[int, str, int, int],
        entries: int,
        version: int = WIRE_VERSION,
    ) -> None:
        """Add one token without logprobs: choice, text, id, end. Most calls consist of those."""
        choice, text, token_id, end = token
        shown = quoted(text)
        self._values += (
            job_id,
            index,
            f"{epoch}-{index}",
            entries,
            0 if index % _BELT_TOKENS else 1,
            f"[{choice},{index},{shown},[{token_id}],[{end}]]",
            f'{event_head(job_id, version)}{epoch},"choice":{choice},'
            f'"from":{index},"to":{index},"text":{shown},"ids":[{token_id}],"ends":[{end}]}}',
        )

    def add(
        self,
        job_id: str,
        epoch: int,
        choice: int,
        start: int,
        text: str,
        ids: Sequence[int],
        ends: Sequence[int],
        logprobs: str = "",
        entries: int = 0,
        version: int = WIRE_VERSION,
        delta: str = "",
    ) -> None:
        """Add tokens `start`… of one choice.

        `logprobs` is a JSON array or empty; `entries` is the number of entries that the log has if
        nobody else wrote, 0 if that is not known. `delta` is as in `some_tokens`.
        """
        to = start + len(ids) - 1
        head = event_head(job_id, version)
        self._values += (
            job_id,
            start,
            f"{epoch}-{to}",
            entries,
            int(to // _BELT_TOKENS > (start - 1) // _BELT_TOKENS),
            *some_tokens(head, epoch, choice, start, text, ids, ends, logprobs, delta),
        )

    def heard_by(self, listens: list[str]) -> None:
        """Publish on the channels of clients too; each job has the secret of its client, or ""."""
        if any(listens):
            self._listens = listens

    def pack(self) -> list[bytes]:
        """Return the arguments: the jobs, and the channels of clients where there are any."""
        clients = [pack(self._listens)] if self._listens else []
        return [pack(self._values), *clients]


def some_tokens(
    head: str,
    epoch: int,
    choice: int,
    start: int,
    text: str,
    ids: Sequence[int],
    ends: Sequence[int],
    logprobs: str = "",
    delta: str = "",
) -> tuple[str, str]:
    """Return log entry and public message of tokens `start`… of one choice.

    `logprobs` is a JSON array or empty; `head` is what the job's messages begin with. `delta` is
    the JSON object of what the tokens add to a message, empty where answers are none; the log has
    only the text.
    """
    id_list, end_list = ",".join(map(str, ids)), ",".join(map(str, ends))
    shown = quoted(text)
    extra, named = (f",{logprobs}", f',"logprobs":{logprobs}') if logprobs else ("", "")
    if delta:
        named += f',"delta":{delta}'
    return (
        f"[{choice},{start},{shown},[{id_list}],[{end_list}]{extra}]",
        f'{head}{epoch},"choice":{choice},"from":{start},"to":{start + len(ids) - 1},'
        f'"text":{shown},"ids":[{id_list}],"ends":[{end_list}]{named}}}',
    )
