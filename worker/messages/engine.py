"""The messages between the worker process and the engine process.

Commands go to the engine process and reports come back, both in order, as frames over a socket
pair. Tokens of a step travel in columns: one record per step, whatever the batch.
"""

from __future__ import annotations

from array import array
from functools import cached_property
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import msgspec

from tokenbus.engine.config import EngineConfig  # noqa: TC001 - msgspec reads the annotation
from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.types import (
    Admission,
    DraftCount,
    EngineLimits,
    EngineStats,
    Fault,
    FinishReason,
    OpenFloat,
    OpenInt,
    Request,
    TokenLogprobs,
)
from tokenbus.worker.process.frames import Framing

if TYPE_CHECKING:
    from tokenbus.engine.types import StepOutput


# 256 streams at 50 tokens/s reach these after 5 s and 80 s of an unreachable server.
SOFT_BACKLOG_TOKENS = 64 * 1024
HARD_BACKLOG_TOKENS = 1024 * 1024


class StartEngine(msgspec.Struct, tag="start", array_like=True):
    """Build the engine; exactly one of the two configurations is set.

    `step_log` is a folder in which to note when tokens were handed over, None = do not. With
    `soft_backlog_tokens` delivered and not confirmed no request is admitted, with
    `hard_backlog_tokens` the engine pauses.
    """

    engine: EngineConfig | None = None
    null: NullConfig | None = None
    step_log: str | None = None
    soft_backlog_tokens: int = SOFT_BACKLOG_TOKENS
    hard_backlog_tokens: int = HARD_BACKLOG_TOKENS

    @classmethod
    def of(cls, config: EngineConfig | NullConfig, step_log: str | None = None) -> Self:
        """Return the message that builds the engine of a configuration."""
        if isinstance(config, NullConfig):
            return cls(null=config, step_log=step_log)
        return cls(engine=config, step_log=step_log)


class AddRequest(msgspec.Struct, tag="add", array_like=True):
    """Give a request to the engine.

    `prompt` has the ids of its prompt as native int32 where the request has none: packed they cost
    both ends a fraction.
    """

    request: Request
    prompt: bytes = b""

    def unpacked(self) -> Request:
        """Return the request with its prompt."""
        if not self.prompt:
            return self.request
        return self.request.with_prompt(array("i", self.prompt))


class AbortRequest(msgspec.Struct, tag="abort", array_like=True):
    """End a request, or one choice of it; later deltas may still be on the way."""

    request_id: int
    choice: int | None = None


class Credit(msgspec.Struct, tag="credit", array_like=True):
    """Return room for tokens that the log has confirmed."""

    num_tokens: int


class LearnAnswer(msgspec.Struct, tag="learn", array_like=True):
    """Let drafts for a group come from an answer; `token_ids` are native int32.

    `name` is the number by which it is forgotten: that of a request, or one below zero.
    """

    name: int
    group: str
    token_ids: bytes


class DropAnswers(msgspec.Struct, tag="drop", array_like=True):
    """Let no more drafts come from the answers of these names."""

    names: list[int]


Command = StartEngine | AddRequest | AbortRequest | Credit | LearnAnswer | DropAnswers


class EngineStarting(msgspec.Struct, tag="starting", array_like=True):
    """What the process does before its engine is built, and which share of that is done, 0 to 1."""

    phase: str
    share: float = 0.0


class EngineReady(msgspec.Struct, tag="ready", array_like=True):
    """The engine is built; `num_pages` counts pages that sequences can hold.

    `tokenizer_folder` is the model's local folder, None for the null engine. `follower_pids` are
    the processes of the ranks that run the model together with this one; `topology` tells where all
    of them are, and is empty for one rank.
    """

    limits: EngineLimits
    num_pages: int
    tokenizer_folder: str | None = None
    follower_pids: tuple[int, ...] = ()
    topology: str = ""


class EngineRefused(msgspec.Struct, tag="refused", array_like=True):
    """The engine cannot be built or died of an exception; `kind` is the exception's class."""

    kind: str
    message: str


class RequestRefused(msgspec.Struct, tag="reject", array_like=True):
    """One request was rejected; `field` names the offending parameter, empty = too long."""

    request_id: int
    field: str
    message: str


class Beat(msgspec.Struct, tag="beat", array_like=True):
    """Sent while no step runs, so that silence means a hang. `paused` = no room for tokens."""

    paused: bool
    stats: EngineStats


class StepRecord(msgspec.Struct, tag="step", array_like=True, kw_only=True, dict=True):
    """All deltas of one step in columns; `token_ids` is flat, `counts` cuts it into rows.

    The rare columns hold (row, …). `sent_at` is CLOCK_MONOTONIC in seconds, which all processes of
    a machine share; `step_s` is how long the step took.
    """

    request_ids: list[int]
    choices: list[int]
    counts: list[int]
    token_ids: list[int]
    ends: list[tuple[int, FinishReason, int | None, Fault | None]]
    logprobs: list[tuple[int, tuple[TokenLogprobs, ...]]]
    prompt_logprobs: list[tuple[int, tuple[TokenLogprobs | None, ...]]]
    drafts: list[tuple[int, DraftCount]] = []
    admitted: list[Admission]
    preempted: list[int]
    stats: EngineStats
    sent_at: float
    step_s: float = 0.0

    @cached_property
    def frame(self) -> bytes:
        """The record as a frame; the engine link sets it to the one that came.

        However many publisher processes a step goes to, it is encoded once, by the engine process.
        """
        return REPORTS.encode(self)


Report = EngineStarting | EngineReady | EngineRefused | RequestRefused | Beat | StepRecord


def pack_step(output: StepOutput, sent_at: float, step_s: float = 0.0) -> StepRecord:
    """Turn a step's deltas into columns."""
    deltas = output.deltas
    token_ids = [d.token_ids for d in deltas]
    # Of 256 rows hardly one has any of these, and three looks at each cost a third of the whole.
    rare = [
        (row, d)
        for row, d in enumerate(deltas)
        if d.finish_reason is not None or d.logprobs or d.prompt_logprobs is not None
    ]
    return StepRecord(
        request_ids=[d.request_id for d in deltas],
        choices=[d.choice for d in deltas],
        counts=list(map(len, token_ids)),
        token_ids=list(chain.from_iterable(token_ids)),
        ends=[
            (row, d.finish_reason, d.stop_token_id, d.error)
            for row, d in rare
            if d.finish_reason is not None
        ],
        logprobs=[(row, d.logprobs) for row, d in rare if d.logprobs],
        prompt_logprobs=[
            (row, d.prompt_logprobs) for row, d in rare if d.prompt_logprobs is not None
        ],
        drafts=[(row, d.drafts) for row, d in rare if d.drafts.drafted],
        admitted=list(output.admitted),
        preempted=list(output.preempted),
        stats=output.stats,
        sent_at=sent_at,
        step_s=step_s,
    )


def _encode_proxy(value: Any) -> Any:
    """Let read-only mappings travel as maps, and open numbers as numbers."""
    if isinstance(value, MappingProxyType):
        return dict(value)
    if isinstance(value, (OpenFloat, OpenInt)):
        return int(value) if isinstance(value, int) else float(value)
    raise NotImplementedError(f"cannot send {type(value).__name__}")


COMMANDS: Framing[Command] = Framing(Command, _encode_proxy)
REPORTS: Framing[Report] = Framing(Report, _encode_proxy)
