"""The messages between the worker process and a publisher.

Orders go to the publisher and reports come back, both in order. Inside one process they are passed
on as objects; to and from a publisher process they travel as frames. `key` is the engine's request
id of a job. Reports that rest on what the server said carry the generation of the session in which
it said so: those of a lost session count for nothing (R7).
"""

from __future__ import annotations

from functools import lru_cache

import msgspec

from tokenbus.engine.types import SamplingParams
from tokenbus.producer.contract.events import Failure  # noqa: TC001 - msgspec reads the annotation
from tokenbus.producer.contract.keys import WIRE_VERSION
from tokenbus.producer.contract.messages.job_chat import JobChat  # noqa: TC001 - msgspec reads the annotation
from tokenbus.worker.messages.engine import StepRecord
from tokenbus.worker.process.frames import Framing


class Configure(msgspec.Struct, tag="configure", array_like=True, kw_only=True):
    """First order to a publisher process.

    `token_bytes` holds the bytes of every token, `special_texts` how those are spelled that have
    none; without them the tokenizer in `tokenizer_folder` is loaded.
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
    special_texts: dict[int, str]

    def __repr__(self) -> str:
        """Name pool and worker; the URL may hold a password."""
        return f"Configure(pool={self.pool!r}, worker={self.worker!r})"


class OpenGate(msgspec.Struct, tag="open", array_like=True):
    """Write from now on; what was known about the logs is void. Times as in `Renewed`."""

    generation: int
    renewed_at: float
    until_ms: int = 0


class CloseGate(msgspec.Struct, tag="close", array_like=True):
    """Write nothing until the gate opens again."""


class Renewed(msgspec.Struct, tag="renewed", array_like=True):
    """The lease was renewed, by CLOCK_MONOTONIC in seconds; `until_ms` as of the session."""

    at: float
    until_ms: int = 0


class TextRules(msgspec.Struct, array_like=True, kw_only=True, frozen=True):
    """The rules for the text and the end of each choice.

    `prompt_tail` are the prompt's last ids; `stop_ids` include the model's own, `eos_ids`, unless
    these are ignored. `chat` is how answers are read, where they are messages; `shown_ids` are the
    special tokens in which its marks are written.
    `sampling` has the checkpoint's numbers that the job got, for its end to tell.
    """

    num_choices: int
    max_tokens: int
    prompt_tail: tuple[int, ...]
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_ids: tuple[int, ...] = ()
    chat: JobChat | None = None
    shown_ids: tuple[int, ...] = ()
    eos_ids: tuple[int, ...] = ()
    sampling: dict[str, float] = {}

    def params(self) -> SamplingParams:
        """Return the part that the text depends on."""
        return _text_params(self.stop, self.include_stop, self.min_tokens)


@lru_cache(maxsize=256)
def _text_params(stop: tuple[str, ...], include_stop: bool, min_tokens: int) -> SamplingParams:
    """Return one object for all jobs that ask for the same; most ask for nothing."""
    return SamplingParams(stop=stop, include_stop=include_stop, min_tokens=min_tokens)


class TakeOver(msgspec.Struct, tag="takeover", array_like=True, kw_only=True):
    """Take a job's log over; without rules only its end is to be written.

    `is_ahead`: nobody can have logged anything, so the engine begins at once, its first tokens
    create the log, and no `Taken` comes back. `job_id` is the text of the job's address, `version`
    its wire version, `listen` the secret of the client that listens to it, or empty. `submitted_at`
    is when it was, by CLOCK_MONOTONIC in seconds.
    """

    key: int
    job_id: str
    epoch: int
    prompt_tokens: int
    rules: TextRules | None
    is_ahead: bool = False
    version: int = WIRE_VERSION
    listen: str = ""
    priority: int = 1
    submitted_at: float = 0.0

    def __repr__(self) -> str:
        """Name the job; the secret is left out."""
        return f"TakeOver(key={self.key}, job_id={self.job_id!r}, epoch={self.epoch})"


class Decide(msgspec.Struct, tag="decide", array_like=True):
    """End a job with what it has."""

    key: int
    reason: str
    error: Failure | None


class HandBack(msgspec.Struct, tag="hand_back", array_like=True):
    """Log what a job has, for the worker hands it back; void once its end is decided."""

    key: int


class Drop(msgspec.Struct, tag="drop", array_like=True):
    """The job has left the worker: write nothing more of it."""

    key: int


# A step goes to every publisher in the bytes that the engine process has sent: each takes the rows
# of its own jobs.
Order = (
    Configure | OpenGate | CloseGate | Renewed | TakeOver | StepRecord | Decide | HandBack | Drop
)


class Ready(msgspec.Struct, tag="ready", array_like=True):
    """The publisher process takes orders."""


class Taken(msgspec.Struct, tag="taken", array_like=True):
    """A log was taken over and ends at `last`; per choice its ids, and why it ended if so."""

    generation: int
    key: int
    last: int
    ids: list[tuple[int, ...]]
    reasons: list[str | None]


class Preceded(msgspec.Struct, tag="preceded", array_like=True):
    """The log of a job that began from nothing is not empty: it ends at `last`."""

    generation: int
    key: int
    last: int


class ChoiceStopped(msgspec.Struct, tag="stopped", array_like=True):
    """A stop string has ended a choice that the engine still runs."""

    key: int
    choice: int


class Decided(msgspec.Struct, tag="decided", array_like=True):
    """A job ended by itself: the reason of the whole and of each choice, and their lengths."""

    key: int
    reason: str
    reasons: list[str | None]
    lengths: list[int]


class Committed(msgspec.Struct, tag="committed", array_like=True):
    """The terminal entry stands in the log.

    `published_at` is when the first token of this owner did, None if none does; `parse_s` what
    reading its messages took.
    """

    generation: int
    key: int
    finish: str
    published_at: float | None = None
    parse_s: float = 0.0


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


class AllLogged(msgspec.Struct, tag="all_logged", array_like=True):
    """Everything of a job that goes back is in its log, or cannot be logged."""

    generation: int
    key: int
    num_logged: int


class Lost(msgspec.Struct, tag="lost", array_like=True):
    """The publisher cannot reach the server, or must start over."""

    generation: int
    reason: str


class Progress(msgspec.Struct, tag="progress", array_like=True):
    """The publisher's work since its last progress; times and moments in seconds.

    `freed_tokens` were logged or dropped and no longer count as backlog. `calls` wrote to logs: of
    each the moments at which the engine delivered the first tokens of its entries, when it began,
    and when the log confirmed it. `hold_s` is the coalescing in force, `cpu_s` the CPU time of a
    publisher process, 0 for a publisher inside the worker process. `firsts` and `ends` are jobs
    whose first token or end was published: priority, and seconds since the submit.
    """

    freed_tokens: int = 0
    logged_tokens: int = 0
    calls: list[tuple[list[float], float, float]] = []
    hold_s: float = 0.0
    cpu_s: float = 0.0
    firsts: list[tuple[int, float]] = []
    ends: list[tuple[int, float]] = []


PublisherReport = (
    Ready
    | Taken
    | Preceded
    | ChoiceStopped
    | Decided
    | Committed
    | Fenced
    | Broken
    | AllLogged
    | Lost
    | Progress
)

ORDERS: Framing[Order] = Framing(Order)
PUBLISHER_REPORTS: Framing[PublisherReport] = Framing(PublisherReport)
