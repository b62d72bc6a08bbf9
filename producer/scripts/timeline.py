"""The timeline of a job: its stamps, as the record and the list of ended jobs carry them.

A stamp is `<kind><ms>` or `<kind><ms>:<words>`, of the server's time in milliseconds; stamps are
parted by blanks and stand in the order in which they were made. Kinds that a reader does not know
are left out, so that a later release may add some.

| kind | when                                 | words                               |
|------|--------------------------------------|-------------------------------------|
| p    | pulled                               | the worker                          |
| a    | admitted by the engine, with pages   |                                     |
| f    | first token after the pull before it |                                     |
| b    | back in the queue                    | why, and how many tokens are logged |
| r    | released: its delay has passed       |                                     |
| e    | ended; made by the reader            |                                     |
| +    | (no time) stamps were left out here  |                                     |

Why a job goes back: `worker` and `engine` died with it, its `log` could not be continued; `parked`
for another job, `drain` of its worker, `size` once tokenised, `cleared` of suspicion, `preceded` by
tokens of an earlier owner, `fenced` off by a later one; nothing where none of these is so.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

import msgspec

from tokenbus.producer.contract.address import JobAddress

PULLED, ADMITTED, FIRST_TOKEN = "p", "a", "f"
BACK, RELEASED, ENDED, OMITTED = "b", "r", "e", "+"

_STAMP = re.compile(r"([pafbre])(\d{1,15})(?::(.*))?", re.DOTALL)
# Of a row in the list of ended jobs; rows of any other are left out.
_FORM = 1
_NUM_FIELDS = 14  # behind the form
_decode = msgspec.msgpack.Decoder().decode


@dataclass(frozen=True, slots=True)
class Stamp:
    """One moment of a job; `worker` of a pull, `why` and `logged` of a return to the queue.

    `at_ms` is 0 for stamps that were left out.
    """

    kind: str
    at_ms: int
    worker: str = ""
    why: str = ""
    logged: int = 0


@dataclass(frozen=True, slots=True)
class EndedJob:
    """A job that has ended, as the pool remembers it: no text, and of an error its code alone.

    Times are the server's in ms; `owner` is the worker that ended it, empty where none did.
    `bound_tokens` are those that it might generate, 0 where that is not known.
    """

    job_id: str
    tenant: str
    priority: int
    created_ms: int
    ended_ms: int
    reason: str
    code: str
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    attempts: int
    owner: str
    stamps: tuple[Stamp, ...]
    bound_tokens: int = 0

    @classmethod
    def parse(cls, row: bytes) -> Self | None:
        """Read a row of the list; None for one that a later release has written otherwise."""
        try:
            form, *fields = _decode(row)
        except (msgspec.DecodeError, ValueError, TypeError):
            return None
        if form != _FORM or len(fields) < _NUM_FIELDS:
            return None
        name, tenant, priority, created, ended, reason, code = fields[:7]
        prompt, cached, output, attempts, owner, stamps, lived = fields[7:_NUM_FIELDS]
        return cls(
            job_id=JobAddress.parse(str(name)).job_id,
            tenant=str(tenant),
            priority=int(priority or 1),
            created_ms=int(created or ended),
            ended_ms=int(ended),
            reason=str(reason),
            code=str(code),
            prompt_tokens=int(prompt),
            cached_tokens=int(cached),
            output_tokens=int(output),
            attempts=int(attempts or 0),
            owner=str(owner),
            stamps=_whole(str(stamps), str(lived), int(ended)),
            # Earlier releases tell none.
            bound_tokens=int(fields[_NUM_FIELDS] if len(fields) > _NUM_FIELDS else 0),
        )

    def first(self, kind: str) -> int | None:
        """Return when something of a kind happened first, in ms; None where it did not."""
        return next((stamp.at_ms for stamp in self.stamps if stamp.kind == kind), None)

    @property
    def num_owners(self) -> int:
        """Count the pulls."""
        return sum(stamp.kind == PULLED for stamp in self.stamps)

    @property
    def queue_ms(self) -> int | None:
        """Return how long it waited for its first pull."""
        pulled = self.first(PULLED)
        released = self.first(RELEASED) or self.created_ms
        return None if pulled is None else max(0, pulled - released)

    @property
    def ttft_ms(self) -> int | None:
        """Return how long it took from its submit, or release, to its first token."""
        first = self.first(FIRST_TOKEN)
        return None if first is None else max(0, first - (self.first(RELEASED) or self.created_ms))

    @property
    def e2e_ms(self) -> int | None:
        """Return how long it took from its submit, or release, to its end, if it was pulled."""
        if not self.num_owners:
            return None
        return max(0, self.ended_ms - (self.first(RELEASED) or self.created_ms))

    @property
    def itl_ms(self) -> float | None:
        """Return the mean gap between its tokens, of a job that one worker has run."""
        first = self.first(FIRST_TOKEN)
        if first is None or self.output_tokens < 2 or self.num_owners != 1:
            return None
        return max(0, self.ended_ms - first) / (self.output_tokens - 1)


def parse_stamps(text: str) -> tuple[Stamp, ...]:
    """Read the stamps of a record; what is none is left out."""
    found = []
    for part in text.split():
        if part == OMITTED:
            found.append(Stamp(OMITTED, 0))
            continue
        match = _STAMP.fullmatch(part)
        if match is None:
            continue
        kind, at_ms, words = match[1], int(match[2]), match[3] or ""
        if kind == BACK:
            why, _, logged = words.partition(":")
            found.append(
                Stamp(kind, at_ms, why=why, logged=int(logged) if logged.isdecimal() else 0)
            )
        else:
            found.append(Stamp(kind, at_ms, worker=words if kind == PULLED else ""))
    return tuple(found)


def _whole(text: str, lived: str, ended_ms: int) -> tuple[Stamp, ...]:
    """Return all stamps of an ended job: those of its record, what its owner told, and the end."""
    stamps = list(parse_stamps(text))
    pulled_ms = next((stamp.at_ms for stamp in reversed(stamps) if stamp.kind == PULLED), None)
    if pulled_ms is not None:
        stamps += (
            Stamp(stamp.kind, pulled_ms + stamp.at_ms)
            for stamp in parse_stamps(lived)
            if stamp.kind in (ADMITTED, FIRST_TOKEN)
        )
    return (*stamps, Stamp(ENDED, ended_ms))


def lived_text(admitted_s: float | None, first_token_s: float | None) -> str:
    """Return what a worker tells of a job, in seconds since its pull, as the scripts read it."""
    admitted = "" if admitted_s is None else f"{ADMITTED}{max(0, round(admitted_s * 1000))}"
    first = "" if first_token_s is None else f" {FIRST_TOKEN}{max(0, round(first_token_s * 1000))}"
    return admitted + first
