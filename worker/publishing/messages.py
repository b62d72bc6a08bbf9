"""What the worker process and a publisher say to each other.

Orders go to the publisher, answers come back, both in order. In one process they are objects; to a
publisher process they travel as frames of msgpack, as to the engine (`worker/engine/messages.py`).
`key` is the engine's request id of a job. Answers that rest on what the server said carry the
generation of the session in which it said so: those of a lost session count for nothing (R7).
"""

from __future__ import annotations

import struct

import msgspec

from tokenbus.engine.grammar.tool_reader import ToolReader  # noqa: TC001 - msgspec reads the annotation
from tokenbus.engine.types import SamplingParams
from tokenbus.producer.contract.events import Failure  # noqa: TC001 - msgspec reads the annotation
from tokenbus.worker.engine.messages import StepRecord

_LENGTH = struct.Struct("<I")


class Configure(msgspec.Struct, tag="configure", array_like=True):
    """First order to a publisher process.

    `token_bytes` holds the bytes of every token; without it the tokenizer in `tokenizer_folder` is
    loaded.
    """

    redis_url: str
    pool: str
    worker: str
    call_timeout_s: float
    lease_ttl_s: float
    vocab_size: int
    tokenizer_folder: str | None
    token_bytes: list[bytes] | None
    strips_first_space: bool
    log_level: str
    log_format: str


class OpenGate(msgspec.Struct, tag="open", array_like=True):
    """Write from now on; nothing that was known about the logs holds any more."""

    generation: int
    renewed_at: float


class CloseGate(msgspec.Struct, tag="close", array_like=True):
    """Write nothing until the gate opens again."""


class Renewed(msgspec.Struct, tag="renewed", array_like=True):
    """The lease was renewed, by CLOCK_MONOTONIC in seconds."""

    at: float


class TextRules(msgspec.Struct, array_like=True, frozen=True):
    """What decides on the text and the end of each choice.

    `prompt_tail` are the prompt's last ids; `stop_ids` include the model's own, `eos_ids`, unless
    these are ignored; `tools` reads the tool calls of the whole text, where there may be any.
    """

    num_choices: int
    max_tokens: int
    min_tokens: int
    stop: tuple[str, ...]
    include_stop: bool
    stop_ids: tuple[int, ...]
    prompt_tail: tuple[int, ...]
    tools: ToolReader | None = None
    eos_ids: tuple[int, ...] = ()

    def params(self) -> SamplingParams:
        """Return the part that the text depends on."""
        return SamplingParams(
            stop=self.stop, include_stop=self.include_stop, min_tokens=self.min_tokens
        )


class TakeOver(msgspec.Struct, tag="takeover", array_like=True):
    """Take a job's log over; without rules only its end is to be written.

    `is_ahead`: nobody can have logged anything, so the engine begins meanwhile, and `Taken` tells
    nothing new.
    """

    key: int
    job_id: str
    epoch: int
    prompt_tokens: int
    rules: TextRules | None
    is_ahead: bool = False


class Decide(msgspec.Struct, tag="decide", array_like=True):
    """End a job with what it has."""

    key: int
    reason: str
    error: Failure | None


class GiveBack(msgspec.Struct, tag="give_back", array_like=True):
    """Log what a job has and say when that is done; unless its end is decided already."""

    key: int


class Forget(msgspec.Struct, tag="forget", array_like=True):
    """The job is not ours any more."""

    key: int


# A step travels as the engine has sent it, to every publisher: each takes the rows of its own jobs.
Order = (
    Configure | OpenGate | CloseGate | Renewed | TakeOver | StepRecord | Decide | GiveBack | Forget
)


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The publisher process takes orders."""


class Taken(msgspec.Struct, tag="taken", array_like=True):
    """A log is ours and ends at `last`; per choice the ids it holds and why the choice ended."""

    generation: int
    key: int
    last: int
    ids: list[tuple[int, ...]]
    reasons: list[str | None]


class Preceded(msgspec.Struct, tag="preceded", array_like=True):
    """A log that was thought empty, of a job that runs already, ends at `last`."""

    generation: int
    key: int
    last: int


class ChoiceStopped(msgspec.Struct, tag="stopped", array_like=True):
    """A stop string ended a choice that the engine still runs."""

    key: int
    choice: int


class Decided(msgspec.Struct, tag="decided", array_like=True):
    """A job ended by itself: the reason of the whole and of each choice, and their lengths."""

    key: int
    reason: str
    reasons: list[str | None]
    lengths: list[int]


class Committed(msgspec.Struct, tag="committed", array_like=True):
    """The terminal entry stands in the log."""

    generation: int
    key: int
    finish: str


class Fenced(msgspec.Struct, tag="fenced", array_like=True):
    """The log belongs to a later owner, at `epoch`."""

    generation: int
    key: int
    epoch: int


class Broken(msgspec.Struct, tag="broken", array_like=True):
    """The log breaks the rules, or what is read from it cannot be used."""

    generation: int
    key: int
    why: str


class Settled(msgspec.Struct, tag="settled", array_like=True):
    """Nothing of a job that goes back is left to be logged."""

    generation: int
    key: int
    num_logged: int


class Lost(msgspec.Struct, tag="lost", array_like=True):
    """The publisher cannot reach the server, or must start over."""

    generation: int
    reason: str


class Progress(msgspec.Struct, tag="progress", array_like=True):
    """What was done since the last one; times in seconds, summed over entries.

    `freed_tokens` were logged or dropped and count no longer as backlog. `waits_s` is from the
    hand-off of an entry's first token to the call, `lags` counts entries by the time until the log
    confirmed them, in the buckets of a `Histogram`. `hold_s` is the coalescing in force, `cpu_s`
    the publisher's time since the last progress, 0 inside the worker process.
    """

    freed_tokens: int = 0
    logged_tokens: int = 0
    entries: int = 0
    calls: int = 0
    waits_s: float = 0.0
    lag_sum_s: float = 0.0
    lags: list[int] = []
    hold_s: float = 0.0
    cpu_s: float = 0.0


Answer = (
    Ready
    | Taken
    | Preceded
    | ChoiceStopped
    | Decided
    | Committed
    | Fenced
    | Broken
    | Settled
    | Lost
    | Progress
)

_encoder = msgspec.msgpack.Encoder()
_order_decoder: msgspec.msgpack.Decoder[Order] = msgspec.msgpack.Decoder(Order)
_answer_decoder: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def encode_frame(message: Order | Answer) -> bytes:
    """Serialise a message with its length in front."""
    body = _encoder.encode(message)
    return _LENGTH.pack(len(body)) + body


def decode_order(body: bytes) -> Order:
    """Parse a message to a publisher process."""
    return _order_decoder.decode(body)


def decode_answer(body: bytes) -> Answer:
    """Parse a message from a publisher process."""
    return _answer_decoder.decode(body)
