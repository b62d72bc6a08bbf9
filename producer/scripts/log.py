"""Scripts of a job's log: takeover, begin, append, end, and how the log is read.

Calls, their items and the way back from entries to events are one noun, past three hundred lines:
each call takes what the one before left.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from tokenbus.producer.contract.events import Event, event_head
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.contract.keys import WIRE_VERSION, shard_of
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.scripts.append_batch import AppendBatch
from tokenbus.producer.scripts.begin_batch import BeginBatch
from tokenbus.producer.scripts.replies import LogReply, LogStatus

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tokenbus.producer.contract.keys import Keys
    from tokenbus.producer.scripts.runner import ScriptRunner
    from tokenbus.producer.scripts.source import Argument

# The server is never blocked for longer than about 0.3 ms by one call.
MAX_BATCH = 64
# Set by every marker and end, renewed by appends: longer than any job is silent, so that no log
# leaks after a rollback.
BELT_MS = 7 * 24 * 3600 * 1000
_PAGE = 512
# Markers before the first token: one, or a few where owners came and went without any.
_NUM_FIRST = 16


@dataclass(frozen=True, slots=True)
class Takeover:
    """A start: at `epoch`, by an owner (`create`, the pull's epoch) or a reaper (held + 1).

    `prompt_tokens` of an owner and `chat`, the JSON object of a chat where answers are messages,
    count if nothing is logged.
    """

    job_id: str
    epoch: int
    worker: str
    create: bool = True
    chat: str = ""
    prompt_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """New tokens `start`…`to` of one choice; `logprobs` is a JSON array or empty.

    `entries` is the number of entries the log has if nobody else wrote, 0 if that is not known;
    `version` is the wire version of the job, `listen` the secret of the channel of the client that
    submitted it, if it has one. `delta` is the JSON object of what they add to a message.
    """

    job_id: str
    epoch: int
    choice: int
    start: int
    to: int
    text: str
    ids: Sequence[int]
    ends: Sequence[int]
    logprobs: str = ""
    entries: int = 0
    version: int = WIRE_VERSION
    listen: str = field(default="", repr=False)
    delta: str = ""


@dataclass(frozen=True, slots=True)
class End:
    """The commit: terminal entry after token `last`, and the result value.

    `owned` false ends a job in `ending` at its record's epoch; `last` is then what the caller read
    from the log, and `gap` says that it moved since. `told` are fields of JSON with which the
    terminal event ends messages.
    """

    job_id: str
    epoch: int
    last: int
    finish: str
    result: str
    owned: bool = True
    version: int = WIRE_VERSION
    listen: str = field(default="", repr=False)
    told: str = ""


@dataclass(frozen=True, slots=True)
class Begin:
    """A start from nothing: the log is created with `tokens` in it, and `end` where there is one.

    `start` tells this start of `worker` from all others, so that a repeated call knows its log. At
    least one token or an end is there. `chat` is the JSON object of a chat where answers are
    messages.
    """

    job_id: str
    epoch: int
    start: str
    tokens: Sequence[Append]
    end: End | None = None
    version: int = WIRE_VERSION
    listen: str = field(default="", repr=False)
    chat: str = ""
    prompt_tokens: int = 0


class LogScripts:
    """Typed calls on token logs; batches keep their order and answer per item.

    `job_id` is the text of a job's address everywhere in this room.
    All entries of a job go through one connection. Raises what `ScriptRunner.run` raises.
    """

    def __init__(
        self,
        runner: ScriptRunner,
        keys: Keys,
        publish: Literal["PUBLISH", "SPUBLISH"] = "PUBLISH",
        belt_ms: int = BELT_MS,
    ) -> None:
        self._runner = runner
        self._keys = keys
        self._belt_ms = belt_ms
        self._publish = publish

    async def takeover(self, items: Sequence[Takeover]) -> list[LogReply]:
        """Write the owner's marker into each log (R1, R2); safe to repeat at the same epoch.

        Answers `ok`, `log`, `fenced`, `terminal` (the job has ended: complete it) or `nolog`.
        """
        return await self._batch(
            "takeover",
            items,
            lambda item: [
                *(item.job_id, item.epoch, item.worker, item.create),
                *_told(item.chat, item.prompt_tokens),
            ],
        )

    async def begin(self, items: Sequence[Begin], worker: str, until_ms: int = 0) -> list[LogReply]:
        """Create the logs of starts from nothing, with what there is, in one server turn (R1, R2).

        A call that comes after `until_ms` of the server's time begins nothing (R7; 0: never).

        Answers `ok`, or writes nothing: `already` (this start's own log), `log` (another's at this
        epoch or an earlier one, `last` tells how long it is), `fenced` or `terminal`.
        Raises: ResponseError `UNLEASED` where it is too late.
        """
        return await self._in_slices(
            items, lambda shard, part: self._begin_slice(shard, worker, until_ms, part)
        )

    async def begin_batch(
        self, shard: int, worker: str, until_ms: int, batch: BeginBatch
    ) -> dict[int, LogReply]:
        """Run one packed batch of starts of a shard; `until_ms` as of `begin`.

        Returns: the answers of those that were not simply written, by their numbers.
        """
        packed, *messages = batch.pack()
        told: list[Argument] = [*messages]
        if until_ms:
            told = [*(messages or [b""]), until_ms]
        answers = await self._runner.run(
            "begin",
            self._keys.log_prefix(shard),
            belt_ms=self._belt_ms,
            publish=self._publish,
            worker=worker,
            batch=packed,
            told=told,
        )
        return {int(number): _log_reply(reply) for number, *reply in answers}

    async def append(self, items: Sequence[Append]) -> list[LogReply]:
        """Log new tokens and publish them, in the same server turn (R3).

        Answers `ok`, `already`, `gap`, `behind`, `fenced` or `nolog`; only `fenced` makes the
        owner drop the job.
        """
        return await self._in_slices(items, self._append_slice)

    async def append_batch(self, shard: int, batch: AppendBatch) -> dict[int, LogReply]:
        """Run one packed batch of at most MAX_BATCH jobs of a shard.

        Returns: the answers of those that were not simply written, by their numbers.
        """
        packed, *clients = batch.pack()
        answers = await self._run("append", shard, packed, clients=clients)
        return {int(number): _log_reply(reply) for number, *reply in answers}

    async def end(self, items: Sequence[End]) -> list[LogReply]:
        """Write terminal entry and result, once per job, and publish the terminal event (R4).

        Owned ends answer `ok`, `already`, `gap`, `behind`, `fenced` or `nolog`; others `ok`,
        `terminal` (with the finish that stands), `gap` or `fenced`.
        """
        return await self._batch(
            "end",
            items,
            lambda item: [
                item.job_id,
                item.epoch,
                item.last,
                item.owned,
                item.finish,
                item.result,
                event_head(item.job_id, item.version),
                *((item.listen, item.told) if item.told else filter(None, (item.listen,))),
            ],
        )

    async def announce(self, job_id: str, message: str) -> None:
        """Tell the listeners of a job's channel something that no log holds."""
        await self._runner.command(self._publish, self._keys.channel(job_id), message)

    async def result(self, job_id: str) -> bytes | None:
        """Read the result value."""
        value: bytes | None = await self._runner.command(*self.result_command(job_id))
        return value

    def result_command(self, job_id: str) -> tuple[str, ...]:
        """Return the command that reads the result value."""
        return ("GET", self._keys.result(job_id))

    async def events(self, job_id: str, cursor: int = 0) -> list[Event] | None:
        """Read the logged events after `cursor`, in order, markers left out; None without a log.

        It reads backwards from the end, so that catching up costs what was missed. A log that goes
        meanwhile, as completion lets it, is none.
        """
        return (await self._read(job_id, cursor))[0]

    async def story(self, job_id: str) -> tuple[list[Event] | None, JobChat | None]:
        """Read all logged events as `events` does, and how the answers in them are read."""
        events, first = await self._read(job_id, 0)
        return events, chat_of(first)

    async def _read(self, job_id: str, cursor: int) -> tuple[list[Event] | None, list[Any]]:
        """Read events after `cursor`; return with them the oldest entries read, latest first."""
        found: list[Event] = []
        page = await self._runner.command(*self.page_command(job_id))
        if take_page(job_id, cursor, page, found):
            return found[::-1] if page else None, page
        before = page
        while page:
            before, bound = page, f"({page[-1][0].decode()}"
            page = await self._runner.command(*self.page_command(job_id, bound))
            if take_page(job_id, cursor, page, found):
                break
        is_there = page or await self._runner.command(*self.page_command(job_id))
        return found[::-1] if is_there else None, [*before, *page]

    async def chat(self, job_id: str) -> JobChat | None:
        """Read how the answers of a job are read; None where they are no messages."""
        return chat_of(await self._beginning(job_id))

    async def prompt_tokens(self, job_id: str) -> int | None:
        """Read how many tokens the prompt of a job has, once it has a token; None without a log.

        Of a log that a worker of an earlier release began it is 0.
        """
        page = await self._beginning(job_id)
        return int(_first_marker(page).get(b"prompt", 0)) if page else None

    async def _beginning(self, job_id: str) -> list[Any]:
        """Read the entries of a log up to its first token at least, latest first."""
        key, after = self._keys.log(job_id), "-"
        found: list[Any] = []
        while True:
            page = await self._runner.command("XRANGE", key, after, "+", "COUNT", _NUM_FIRST)
            found += page
            if len(page) < _NUM_FIRST or b"marker" not in page[-1][1]:
                return found[::-1]
            after = f"({page[-1][0].decode()}"

    def page_command(self, job_id: str, bound: str = "+") -> tuple[str | int, ...]:
        """Return the command that reads the log's last entries up to `bound`, for `take_page`."""
        return ("XREVRANGE", self._keys.log(job_id), bound, "-", "COUNT", _PAGE)

    def tail_command(self, job_id: str) -> tuple[str | int, ...]:
        """Return the command that reads the log's last entry, for `last_index`."""
        return ("XREVRANGE", self._keys.log(job_id), "+", "-", "COUNT", 1)

    async def _batch(
        self, name: str, items: Sequence[Any], pack: Callable[[Any], list[str | int | bool]]
    ) -> list[LogReply]:
        """Run a batch script that takes a JSON array per item."""

        async def run(shard: int, part: Sequence[Any]) -> list[LogReply]:
            batch = to_json([pack(item) for item in part])
            answers = await self._run(name, shard, batch)
            return [_log_reply(answer) for answer in answers]

        return await self._in_slices(items, run)

    async def _run(
        self, name: str, shard: int, batch: bytes, **more: Argument | Sequence[Argument]
    ) -> Any:
        return await self._runner.run(
            name,
            self._keys.log_prefix(shard),
            belt_ms=self._belt_ms,
            publish=self._publish,
            batch=batch,
            **more,
        )

    async def _begin_slice(
        self, shard: int, worker: str, until_ms: int, items: Sequence[Begin]
    ) -> list[LogReply]:
        batch = BeginBatch()
        for item in items:
            batch.add(item.job_id, item.epoch, item.start, item.listen, item.version)
            batch.tell(item.chat, item.prompt_tokens)
            for each in item.tokens:
                columns = (each.choice, each.start, each.text, each.ids, each.ends)
                batch.tokens(*columns, each.logprobs, each.delta)
            if item.end is not None:
                batch.end(item.end.finish, item.end.result, item.end.told)
        others = await self.begin_batch(shard, worker, until_ms, batch)
        return [others.get(number) or _begun(item) for number, item in enumerate(items)]

    async def _append_slice(self, shard: int, items: Sequence[Append]) -> list[LogReply]:
        batch = AppendBatch()
        for item in items:
            batch.add(
                item.job_id,
                item.epoch,
                item.choice,
                item.start,
                item.text,
                item.ids,
                item.ends,
                item.logprobs,
                item.entries,
                item.version,
                item.delta,
            )
        batch.heard_by([item.listen for item in items])
        others = await self.append_batch(shard, batch)
        return [
            others.get(number)
            or LogReply(LogStatus.OK, item.epoch, item.to, entries=item.entries + 1)
            for number, item in enumerate(items)
        ]

    async def _in_slices(
        self,
        items: Sequence[Any],
        run: Callable[[int, Sequence[Any]], Awaitable[list[LogReply]]],
    ) -> list[LogReply]:
        """Call `run` once per shard and slice, and put the answers in order."""
        shards = {shard_of(item.job_id) for item in items}
        if len(shards) == 1 and len(items) <= MAX_BATCH:
            return await run(shards.pop(), items)
        replies: list[LogReply | None] = [None] * len(items)
        numbered = sorted(
            enumerate(items), key=lambda pair: shard_of(pair[1].job_id)
        )  # stable: the order of one job's items stays
        for shard, group in groupby(numbered, key=lambda pair: shard_of(pair[1].job_id)):
            members = list(group)
            for first in range(0, len(members), MAX_BATCH):
                part = members[first : first + MAX_BATCH]
                answers = await run(shard, [item for _, item in part])
                for (number, _), reply in zip(part, answers, strict=True):
                    replies[number] = reply
        return [reply for reply in replies if reply is not None]


def _told(chat: str, prompt_tokens: int) -> tuple[str | int, ...]:
    """Return what a takeover's marker tells of a job; of old it told the chat alone."""
    if prompt_tokens:
        return chat, prompt_tokens
    return (chat,) if chat else ()


def _begun(item: Begin) -> LogReply:
    """Say what stands after a begin that was written."""
    last = item.tokens[-1].to if item.tokens else 0
    if item.end is not None:
        return LogReply(LogStatus.OK, item.epoch, last, item.end.finish)
    return LogReply(LogStatus.OK, item.epoch, last, entries=1 + len(item.tokens))


def _log_reply(answer: list[Any]) -> LogReply:
    """Read one item's answer."""
    status, epoch, last, finish, entries, *epoch_before = answer
    return LogReply(
        LogStatus(status.decode()),
        int(epoch),
        int(last),
        finish.decode(),
        int(entries),
        int(epoch_before[0]) if epoch_before else 0,
    )


def _event(job_id: str, entry_id: bytes, wire: dict[bytes, bytes]) -> Event | None:
    """Turn a log entry into the event that was published; None for a marker."""
    body = wire.get(b"finish") or wire.get(b"e")
    return None if body is None else Event.of_entry(job_id, entry_id, body)


def is_whole(page: Sequence[Any]) -> bool:
    """Tell whether a page of a log's last entries is all of the log."""
    return len(page) < _PAGE


def last_index(tail: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> int | None:
    """Return the index of the last token before the end of a log; None behind a terminal entry."""
    if not tail:
        return 0
    [(entry_id, fields)] = tail
    if b"finish" in fields:
        return None
    return int(fields[b"to"] if b"marker" in fields else entry_id.rpartition(b"-")[2])


def chat_of(page: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> JobChat | None:
    """Return the chat of a job from the beginning of its log, latest entry first."""
    chat = _first_marker(page).get(b"chat")
    return None if chat is None else JobChat.parse(chat)


def _first_marker(page: Sequence[tuple[bytes, dict[bytes, bytes]]]) -> dict[bytes, bytes]:
    """Return the last marker before the first token: that of the owner who wrote this token."""
    marker: dict[bytes, bytes] = {}
    for _, fields in reversed(page):
        if b"marker" not in fields:
            break
        marker = fields
    return marker


def take_page(
    job_id: str, cursor: int, page: Sequence[tuple[bytes, dict[bytes, bytes]]], found: list[Event]
) -> bool:
    """Add a page's events after `cursor` to those found, latest first; True if that is all."""
    for entry_id, fields in page:
        event = _event(job_id, entry_id, fields)
        if event is None:
            continue
        if event.finish is None and event.to <= cursor:
            return True
        found.append(event.after(cursor))
    return len(page) < _PAGE
