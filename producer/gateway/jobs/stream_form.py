"""The form of a stream: all that a door needs, beside the job, to write its frames again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from tokenbus.producer.contract import deployment_keys

if TYPE_CHECKING:
    from redis.asyncio import Redis

Kind = Literal["chat", "completion", "job"]


class StreamForm(msgspec.Struct, frozen=True, omit_defaults=True):
    """How the answers of jobs are told.

    jobs: ids, one a prompt; the first one names the stream.
    names: of each job, fields as the caller spelled them by the names that errors have for them.
    """

    kind: Kind
    jobs: tuple[str, ...]
    created: int
    model: str = ""
    n: int = 1
    with_usage: bool = False
    with_continuous_usage: bool = False
    with_logprobs: bool = False
    tier: str = ""
    names: tuple[dict[str, str], ...] = ()

    @property
    def wire_id(self) -> str:
        """Return the id of the answer."""
        return wire_id(self.kind, self.jobs[0])


_PREFIXES: dict[Kind, str] = {"chat": "chatcmpl-", "completion": "cmpl-", "job": ""}
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(StreamForm).decode


def wire_id(kind: Kind, job_id: str) -> str:
    """Return the id of an answer, which the id of its job is the end of."""
    return f"{_PREFIXES[kind]}{job_id}"


def job_id_of(given: str) -> str:
    """Return the id of a job from its own, or from that of an answer."""
    for prefix in _PREFIXES.values():
        if prefix and given.startswith(prefix):
            return given.removeprefix(prefix)
    return given


def parse_cursor(text: str, num_cursors: int) -> list[int] | None:
    """Return the numbers of a cursor; None for what is none of so many."""
    parts = text.split(",")
    if len(parts) != num_cursors or not all(part.isascii() and part.isdecimal() for part in parts):
        return None
    numbers = [int(part) for part in parts if len(part) <= 12]
    return numbers if len(numbers) == num_cursors else None


async def keep_form(redis: Redis, form: StreamForm, ttl_s: float) -> None:
    """Keep a form for as long as the result. Raises: what a call on the server raises."""
    await redis.set(deployment_keys.stream_form(form.jobs[0]), _encode(form), px=int(ttl_s * 1000))


async def kept_form(redis: Redis, job_id: str) -> StreamForm | None:
    """Return the form of a job's stream; None where it has none, or is not kept any more."""
    stored = await redis.get(deployment_keys.stream_form(job_id))
    try:
        return None if stored is None else _decode(stored)
    except msgspec.MsgspecError:
        return None
