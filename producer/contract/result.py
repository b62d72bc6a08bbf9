"""The result of a job: one JSON value that replaces its log, exact enough to resume from.

How it is written, read, replayed and put together of events is one noun, past three hundred lines.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.written_message import WrittenCall
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.events import (
    FINISHED_REASONS,
    Event,
    Finish,
    ToolCall,
    messages_of,
    names_of,
    told,
)
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.contract.keys import KNOWN_VERSIONS, WIRE_VERSION, versions_text
from tokenbus.producer.contract.logprobs import extend_column, per_token
from tokenbus.producer.contract.messages.answer_message import AnswerMessage
from tokenbus.producer.errors import JobDropped, ProducerError, SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True, slots=True)
class Choice:
    """The whole output of one choice.

    `stop_reason` is the stop string or stop id that ended it, None for the model's own end or for
    length. `logprobs` are those of events: one per token id, or none at all. `finish` and `address`
    are those of the job.
    """

    index: int
    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    logprobs: tuple[Any, ...] = ()
    reason: str = ""
    stop_reason: int | str | None = None
    finish: Finish | None = field(default=None, repr=False, compare=False)
    address: str = field(default="", repr=False, compare=False)

    @property
    def finish_reason(self) -> str:
        """Return why it ended: `tool_calls`, `stop`, `length`, or what ended the whole job."""
        return self.reason if self.finish is None else self.finish.finish_reason_of(self.index)

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Return its tool calls, those that are whole."""
        calls = () if self.finish is None else self.finish.tool_calls
        return tuple(call for call in calls if call.choice == self.index)

    @property
    def message(self) -> AnswerMessage:
        """Return its message: content, reasoning and calls; the text is read anew each time.

        Where no worker told how it is written, calls are those of the finish, and what stands
        before them is content.
        """
        chat = None if self.finish is None else self.finish.chat
        messages = messages_of(chat, self.address, self.index + 1)
        if messages is not None:
            if self.ends:
                messages.read(self.index, self.text, self.ends)
            messages.finish()
            return messages.message(self.index)
        calls = self.tool_calls
        written = tuple(WrittenCall(call.id, call.name, call.arguments) for call in calls)
        return AnswerMessage(self.text[: calls[0].at] if calls else self.text, calls=written)


@dataclass(frozen=True, slots=True)
class JobResult:
    """Everything a job generated, and how it ended.

    `runs` lists (choice, first index, last index) in index order: which choice each token index
    of the job belongs to. `prompt_logprobs` has an entry per prompt token, in the form of a token's
    logprobs, None for the first; it is empty unless it was asked for, and where the job was ended
    by anyone but its worker. `version` is the wire version of the job.
    """

    job_id: str
    epoch: int
    finish: Finish
    choices: tuple[Choice, ...]
    runs: tuple[tuple[int, int, int], ...]
    prompt_logprobs: tuple[Any, ...] = ()
    tenant: str = DEFAULT_TENANT
    version: int = WIRE_VERSION

    @property
    def text(self) -> str:
        """Return the text of the first choice."""
        return self.choices[0].text if self.choices else ""

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Return the tool calls of the first choice."""
        return self.choices[0].tool_calls if self.choices else ()

    @property
    def content(self) -> str:
        """Return the text of the first choice without its tool calls and its reasoning."""
        return self.message.content

    @property
    def message(self) -> AnswerMessage:
        """Return the message of the first choice."""
        return self.choices[0].message if self.choices else AnswerMessage()

    @property
    def finish_reason(self) -> str:
        """Return why the first choice ended: `tool_calls`, `stop`, `length` or the job's reason."""
        return self.finish.finish_reason_of(0)

    @property
    def last(self) -> int:
        """Return the index of the last token."""
        return self.runs[-1][2] if self.runs else 0

    def dump(self, finish: str = "") -> str:
        """Return the JSON value that is stored; `finish` is that of its finish, where known."""
        wire: dict[str, Any] = {
            **names_of(self.job_id, self.tenant, self.version),
            "epoch": self.epoch,
            "choices": [_dump_choice(choice) for choice in self.choices],
            "runs": [list(run) for run in self.runs],
        }
        if self.prompt_logprobs:
            wire["prompt_logprobs"] = list(self.prompt_logprobs)
        has_logprobs = self.prompt_logprobs or any(choice.logprobs for choice in self.choices)
        # Numbers that JSON has no name for are written as Python's reader takes them.
        head = (
            json.dumps(wire, separators=(",", ":"), ensure_ascii=False)
            if has_logprobs
            else (to_json(wire).decode())
        )
        return f'{head[:-1]},"finish":{finish or self.finish.dump()}}}'

    @classmethod
    def parse(cls, text: bytes | str) -> JobResult:
        """Read what `dump` wrote, of any known version.

        Raises: SchemaMismatch for another; JobDropped where it was dropped for room.
        """
        wire = json.loads(text)
        if "dropped" in wire:
            raise JobDropped(wire["job"])
        if wire["v"] not in KNOWN_VERSIONS:
            raise SchemaMismatch("v", f"the result {versions_text(wire['v'])}")
        finish = Finish.from_wire(wire["finish"])
        address = address_of(wire["job"], wire.get("tenant", DEFAULT_TENANT), wire["v"])
        return cls(
            job_id=wire["job"],
            epoch=wire["epoch"],
            finish=finish,
            choices=tuple(
                Choice(
                    number,
                    choice["text"],
                    tuple(choice["ids"]),
                    tuple(choice["ends"]),
                    per_token(choice.get("logprobs", ()), len(choice["ids"])),
                    choice["reason"],
                    finish.stop_reason_of(number),
                    finish,
                    address,
                )
                for number, choice in enumerate(wire["choices"])
            ),
            runs=tuple((run[0], run[1], run[2]) for run in wire["runs"]),
            prompt_logprobs=tuple(wire.get("prompt_logprobs", ())),
            tenant=wire.get("tenant", DEFAULT_TENANT),
            version=wire["v"],
        )

    def events(self, cursor: int) -> Iterator[Event]:
        """Replay the job after `cursor` as its readers would have seen it, merged per run."""
        address = address_of(self.job_id, self.tenant, self.version)
        messages = messages_of(self.finish.chat, address, max(1, len(self.choices)))
        if messages is None:
            return self._plain_events(cursor)
        return told(self._plain_events(0), messages, cursor)

    def _plain_events(self, cursor: int) -> Iterator[Event]:
        done = [0] * len(self.choices)
        for number, start, to in self.runs:
            choice, first = self.choices[number], done[number]
            last = first + to - start + 1
            done[number] = last
            if to <= cursor:
                continue
            event = Event(
                self.job_id,
                self.epoch,
                number,
                start,
                to,
                text=choice.text[choice.ends[first - 1] if first else 0 : choice.ends[last - 1]],
                ids=choice.ids[first:last],
                ends=choice.ends[first:last],
                logprobs=choice.logprobs[first:last],
                tenant=self.tenant,
                version=self.version,
            )
            yield event.after(cursor)
        yield Event(
            self.job_id,
            self.epoch,
            0,
            self.last + 1,
            self.last,
            finish=self.finish,
            tenant=self.tenant,
            version=self.version,
        )


def dump_plain(
    head: str,
    epoch: int,
    choices: Sequence[dict[str, Any]],
    runs: Sequence[Sequence[int]],
    finish: str,
) -> str:
    """Return what `JobResult.dump` would, where there are no logprobs, without the objects.

    `head` is what the job's messages begin with (`event_head`); a choice is text, ids, ends and
    reason; `finish` is JSON.
    """
    return (
        f'{head}{epoch},"choices":{to_json(choices).decode()},"runs":{to_json(runs).decode()}'
        f',"finish":{finish}}}'
    )


class JobEndedEarly(ProducerError):
    """A job ended without finishing; `result` holds what was generated before."""

    def __init__(self, message: str, result: JobResult) -> None:
        super().__init__(message)
        self.result = result


class JobCancelled(JobEndedEarly):
    """The job was cancelled."""


class JobExpired(JobEndedEarly):
    """The job's deadline passed."""


class JobFailed(JobEndedEarly):
    """The job failed; `code`, `field` and the message say why."""

    def __init__(self, code: str, field: str | None, message: str, result: JobResult) -> None:
        super().__init__(f"{code}: {message}", result)
        self.code = code
        self.field = field


def ended_early(result: JobResult) -> JobEndedEarly | None:
    """Return the error that stands for a result of a job that did not finish."""
    job_id, reason, error = result.job_id, result.finish.reason, result.finish.error
    if reason in FINISHED_REASONS:
        return None
    if reason == "cancelled":
        return JobCancelled(f"job {job_id} was cancelled", result)
    if reason == "expired":
        return JobExpired(f"the deadline of job {job_id} passed", result)
    if error is None:
        return JobFailed(reason, None, f"job {job_id} ended as {reason}", result)
    return JobFailed(error.code, error.field, error.message, result)


@dataclass(slots=True)
class _Growing:
    """A choice while its events are put together."""

    text: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)


def build_result(
    address: str,
    epoch: int,
    events: Iterable[Event],
    finish: Finish,
    num_choices: int = 1,
    version: int = WIRE_VERSION,
) -> JobResult:
    """Put the token events of the job at an address, in index order, together to its result."""
    growing = [_Growing() for _ in range(num_choices)]
    runs: list[tuple[int, int, int]] = []
    for event in events:
        while event.choice >= len(growing):
            growing.append(_Growing())
        choice = growing[event.choice]
        choice.text.append(event.text)
        extend_column(choice.logprobs, len(choice.ids), event.logprobs, len(event.ids))
        choice.ids.extend(event.ids)
        choice.ends.extend(event.ends)
        if runs and runs[-1][0] == event.choice and runs[-1][2] + 1 == event.start:
            runs[-1] = (event.choice, runs[-1][1], event.to)
        else:
            runs.append((event.choice, event.start, event.to))
    reasons = finish.choices or (finish.reason,) * len(growing)
    choices = tuple(
        Choice(
            number,
            "".join(part.text),
            tuple(part.ids),
            tuple(part.ends),
            tuple(part.logprobs),
            reasons[number] if number < len(reasons) else finish.reason,
            finish.stop_reason_of(number),
            finish,
            address,
        )
        for number, part in enumerate(growing)
    )
    named = JobAddress.parse(address)
    return JobResult(
        named.job_id,
        epoch,
        finish,
        choices,
        tuple(runs),
        tenant=named.tenant,
        version=version,
    )


def address_of(job_id: str, tenant: str, version: int) -> str:
    """Return the text of a job's address; version 1 put every job at its id."""
    return job_id if version == 1 else JobAddress(job_id, tenant).text


def _dump_choice(choice: Choice) -> dict[str, Any]:
    wire: dict[str, Any] = {
        "text": choice.text,
        "ids": list(choice.ids),
        "ends": list(choice.ends),
        "reason": choice.reason,
    }
    if choice.logprobs:
        wire["logprobs"] = list(choice.logprobs)
    return wire
