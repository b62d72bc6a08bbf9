"""Events as readers see them: tokens, and the one terminal event of a job.

Tokens, their ends and what both add to messages are one noun, past three hundred lines: an event.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from tokenbus.engine.chat.delta import MessageDelta
from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.address import DEFAULT_TENANT, JobAddress
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.contract.keys import WIRE_VERSION
from tokenbus.producer.contract.logprobs import extend_column, per_token
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.messages.job_messages import JobMessages
from tokenbus.producer.contract.messages.wire_delta import WireDelta, joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

FINISHED_REASONS = frozenset({"stop", "length"})
# Why a choice ended that stopped after it had made calls.
TOOL_CALLS = "tool_calls"


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a job failed: a stable code, the offending field if there is one, one sentence.

    The codes are listed in docs/failures.md.
    """

    code: str
    message: str
    field: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool; `arguments` is a JSON object that satisfies the tool's schema.

    `at` is where the calls of its choice begin in the text of the choice, in characters: what
    stands before is the answer's own text.
    """

    choice: int
    id: str
    name: str
    arguments: str
    at: int


@dataclass(frozen=True, slots=True)
class Finish:
    """How a job ended: `stop`, `length`, `cancelled`, `expired` or `failed`.

    `choices` holds the reason of each choice, in order; empty where the job ended as a whole.
    `tool_calls` are those of all choices, in order. `stop_reasons` names the stop string or stop id
    that ended each choice, None for the model's own end and for length; empty where all are None.
    `chat` says how the answers are read as messages, where they are.
    `sampling` has the sampling numbers that are the checkpoint's, where the request gave none.
    """

    reason: str
    usage: Usage = field(default_factory=Usage)
    error: Failure | None = None
    choices: tuple[str, ...] = ()
    tool_calls: tuple[ToolCall, ...] = ()
    stop_reasons: tuple[int | str | None, ...] = ()
    sampling: dict[str, int | float] = field(default_factory=dict)
    chat: JobChat | None = None

    def finish_reason_of(self, choice: int) -> str:
        """Return why a choice ended as chat APIs say it: `tool_calls` where it stopped with calls.

        Reasons of the job and of its choices stay what every release understands: `stop` for these.
        """
        reason = self.choices[choice] if choice < len(self.choices) else self.reason
        has_calls = reason == "stop" and any(call.choice == choice for call in self.tool_calls)
        return TOOL_CALLS if has_calls else reason

    @property
    def finish_reasons(self) -> Sequence[str]:
        """Return of each choice what `finish_reason_of` does."""
        if not self.tool_calls:
            return self.choices
        return [self.finish_reason_of(choice) for choice in range(len(self.choices))]

    def stop_reason_of(self, choice: int) -> int | str | None:
        """Return the stop string or stop id that ended a choice, if one did."""
        return self.stop_reasons[choice] if choice < len(self.stop_reasons) else None

    def dump(self) -> str:
        """Return the JSON object that the terminal event carries as `finish`."""
        usage = self.usage
        wire: dict[str, Any] = {
            "reason": self.reason,
            "usage": {
                "prompt_tokens": usage.prompt_tokens,
                "cached_tokens": usage.cached_tokens,
                "completion_tokens": usage.completion_tokens,
            },
            "choices": list(self.choices),
            "error": None,
        }
        if self.error is not None:
            error = self.error
            wire["error"] = {"code": error.code, "field": error.field, "message": error.message}
        if self.tool_calls:
            wire["tool_calls"] = [asdict(call) for call in self.tool_calls]
        if self.stop_reasons:
            wire["stop_reasons"] = list(self.stop_reasons)
        if self.chat is not None:
            wire["usage"]["reasoning_tokens"] = usage.reasoning_tokens
            wire["finish_reasons"] = list(self.finish_reasons)
            wire["chat"] = asdict(self.chat)
        if self.sampling:
            wire["sampling"] = dict(self.sampling)
        return to_json(wire).decode()

    @classmethod
    def parse(cls, text: bytes | str) -> Finish:
        """Read what `dump` wrote, of this release or another."""
        try:
            return _decode_finish(text)
        except msgspec.MsgspecError:
            # Four times as slow: what another release or a stranger wrote.
            return cls.from_wire(json.loads(text))

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Finish:
        """Read a decoded `finish` object; unknown keys are left for later versions."""
        usage = wire.get("usage") or {}
        error = wire.get("error")
        return cls(
            reason=str(wire["reason"]),
            usage=Usage(
                int(usage.get("prompt_tokens", 0)),
                int(usage.get("cached_tokens", 0)),
                int(usage.get("completion_tokens", 0)),
                int(usage.get("reasoning_tokens", 0)),
            ),
            error=error and Failure(str(error["code"]), str(error["message"]), error.get("field")),
            choices=tuple(str(reason) for reason in wire.get("choices") or ()),
            tool_calls=tuple(
                ToolCall(
                    int(call["choice"]),
                    str(call["id"]),
                    str(call["name"]),
                    str(call["arguments"]),
                    int(call["at"]),
                )
                for call in wire.get("tool_calls") or ()
            ),
            stop_reasons=tuple(wire.get("stop_reasons") or ()),
            chat=JobChat.of_wire(wire.get("chat")),
            sampling=dict(wire.get("sampling") or {}),
        )


_decode_finish = msgspec.json.Decoder(Finish).decode


class Event(
    msgspec.Struct,
    frozen=True,
    gc=False,
    rename={"job_id": "job", "start": "from", "version": "v"},
):
    """New tokens of one choice, or the end of the job; `version` is the wire version of the job.

    `start` and `to` are the job's token indices of the first and last token, from 1, counted over
    all choices; of the terminal event `start` = `to` + 1. `ends` gives per token the end of its
    published text, in characters (Unicode code points) since the start of the choice. `logprobs`
    has an entry per token if they were asked for: `[logprob, rank, [[id, logprob] …]]`, with a
    fourth element, true, for a token that a grammar forced; None where a worker of an earlier
    version left it out.

    Where answers are read as messages, `told` is what the event adds to that of its choice, and
    `told_each` what was held back until the end, for all choices. In all other jobs, and where a
    worker of an earlier release wrote, both are empty and the text is content.
    """

    job_id: str
    epoch: int
    choice: int
    start: int
    to: int
    text: str = ""
    ids: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()
    logprobs: tuple[Any, ...] = ()
    finish: Finish | None = None
    tenant: str = DEFAULT_TENANT
    version: int = WIRE_VERSION
    told: WireDelta | None = msgspec.field(default=None, name="delta")
    told_each: tuple[WireDelta, ...] = msgspec.field(default=(), name="deltas")

    @property
    def cursor(self) -> int:
        """Return the cursor to resume from once this event was handled."""
        return self.to

    @property
    def delta(self) -> MessageDelta | None:
        """Return what the event adds to the message of its choice; None of an untold end.

        An answer that nobody tells the parts of is content, as in the result.
        """
        if self.told is not None:
            return self.told.read()
        return None if self.finish is not None else MessageDelta(self.text)

    @property
    def deltas(self) -> tuple[tuple[int, MessageDelta], ...]:
        """Return choice and delta of every message to which the event adds something."""
        if self.told is None:
            delta = self.delta
            return ((self.choice, delta),) if delta else ()
        each = self.told_each or (self.told,)
        first = 0 if self.told_each else self.choice
        read = ((number, delta.read()) for number, delta in enumerate(each, first))
        return tuple((choice, delta) for choice, delta in read if delta)

    @classmethod
    def of_entry(cls, address: str, entry_id: bytes, body: bytes) -> Event:
        """Read an entry of the log at an address: tokens, or the end.

        Raises: ValueError, KeyError or TypeError if it is no event.
        """
        named = JobAddress.parse(address)
        job_id, tenant = named.job_id, named.tenant
        epoch, _, index = entry_id.partition(b"-")
        if body.startswith(b"{"):
            last = int(index) - 1
            finish = Finish.parse(body)
            return cls(job_id, int(epoch), 0, last + 1, last, finish=finish, tenant=tenant)
        try:
            entry = _decode_entry(body)
        except msgspec.MsgspecError:
            entry = _Entry(*json.loads(body))
        ids = tuple(entry.ids)
        to = entry.start + len(ids) - 1
        ends, logprobs = tuple(entry.ends), per_token(entry.logprobs, len(ids))
        return cls(
            job_id,
            int(epoch),
            entry.choice,
            entry.start,
            to,
            entry.text,
            ids,
            ends,
            logprobs,
            tenant=tenant,
        )

    def dump(self) -> dict[str, Any]:
        """Return the event as the JSON object of the public contract."""
        wire: dict[str, Any] = {
            **names_of(self.job_id, self.tenant, self.version),
            "epoch": self.epoch,
            "choice": self.choice,
            "from": self.start,
            "to": self.to,
            "text": self.text,
            "ids": list(self.ids),
            "ends": list(self.ends),
        }
        if self.logprobs:
            wire["logprobs"] = list(self.logprobs)
        if self.told is not None:
            wire["delta"] = self.told.dump()
        if self.told_each:
            wire["deltas"] = [delta.dump() for delta in self.told_each]
        if self.finish is not None:
            wire["finish"] = json.loads(self.finish.dump())
        return wire

    def with_deltas(self, deltas: Sequence[MessageDelta]) -> Event:
        """Add the delta of the event's choice, or those that end all choices."""
        told, others = WireDelta.of(deltas[0] if deltas else joined(())), deltas[1:]
        each = tuple(map(WireDelta.of, deltas)) if any(others) else ()
        return msgspec.structs.replace(self, told=told, told_each=each)

    def after(self, cursor: int) -> Event:
        """Cut off the tokens up to `cursor`, which lies inside this event, and with them its delta.

        What the rest adds to a message only who reads all of the answer knows (`told`).
        """
        num_seen = cursor - self.start + 1
        if num_seen <= 0 or self.finish is not None:
            return self
        text_start = self.ends[-1] - len(self.text)
        return msgspec.structs.replace(
            self,
            start=cursor + 1,
            text=self.text[self.ends[num_seen - 1] - text_start :],
            ids=self.ids[num_seen:],
            ends=self.ends[num_seen:],
            logprobs=self.logprobs[num_seen:],
            told=None,
        )

    def merged(self, later: Event) -> Event | None:
        """Join with the event that follows at once; None if they do not belong together."""
        if later.finish is not None or self.finish is not None:
            return None
        if later.choice != self.choice or later.start != self.to + 1:
            return None
        told, more = self.told, later.told
        if told is None or more is None:
            if told is not more:
                return None
        else:
            told = WireDelta.of(joined((told.read(), more.read())))
        logprobs = list(self.logprobs)
        extend_column(logprobs, len(self.ids), later.logprobs, len(later.ids))
        return msgspec.structs.replace(
            self,
            epoch=later.epoch,
            to=later.to,
            text=self.text + later.text,
            ids=self.ids + later.ids,
            ends=self.ends + later.ends,
            logprobs=tuple(logprobs),
            told=told,
        )


def told(events: Iterable[Event], messages: JobMessages, cursor: int = 0) -> Iterator[Event]:
    """Yield the events after `cursor` with their deltas, of all events of a job in order.

    `messages` has read nothing of it before; afterwards it has read all.
    """
    for event in events:
        if event.finish is not None:
            yield event.with_deltas(messages.finish())
        elif event.to <= cursor:
            messages.read(event.choice, event.text, event.ends)
        else:
            rest = event.after(cursor)
            num_seen = len(event.ids) - len(rest.ids)
            if num_seen:
                seen = event.text[: len(event.text) - len(rest.text)]
                messages.read(event.choice, seen, event.ends[:num_seen])
            yield rest.with_deltas([messages.read(rest.choice, rest.text, rest.ends)])


def messages_of(chat: JobChat | None, address: str, num_choices: int = 1) -> JobMessages | None:
    """Return what reads the answers of a job; None where they are no messages.

    Nor are they to a release that does not know the chat's format.
    """
    if chat is None:
        return None
    try:
        return JobMessages(chat, address, num_choices)
    except KeyError:
        return None


def closed(finish: Finish, messages: JobMessages, texts: Sequence[str]) -> Finish:
    """Return the finish of a job with what its messages tell, all of whose tokens were read.

    Args:
        texts: the text of each choice.
    """
    messages.finish()
    calls = [
        ToolCall(choice, call.id, call.name, call.arguments, messages.calls_at(choice, text))
        for choice, text in enumerate(texts)
        for call in messages.message(choice).tool_calls
    ]
    usage = replace(finish.usage, reasoning_tokens=messages.reasoning_tokens)
    is_finished = finish.reason in FINISHED_REASONS
    return replace(
        finish,
        usage=usage,
        tool_calls=tuple(calls) if is_finished else (),
        chat=messages.chat,
    )


def names_of(job_id: str, tenant: str, version: int) -> dict[str, Any]:
    """Return what an event or result of a job begins with.

    The tenant is left out where it is `default`, and under version 1, which does not tell it.
    """
    named: dict[str, Any] = {"v": version, "job": job_id}
    if version > 1 and tenant != DEFAULT_TENANT:
        named["tenant"] = tenant
    return named


@lru_cache(maxsize=4096)
def event_head(address: str, version: int) -> str:
    """Return the beginning of the messages of the job at an address, up to its epoch."""
    named = JobAddress.parse(address)
    return to_json(names_of(named.job_id, named.tenant, version)).decode()[:-1] + ',"epoch":'


class _Entry(msgspec.Struct, array_like=True, gc=False):
    """The columns of a log entry."""

    choice: int
    start: int
    text: str
    ids: tuple[int, ...]
    ends: tuple[int, ...]
    logprobs: tuple[Any, ...] = ()


_decode_entry = msgspec.json.Decoder(_Entry).decode
