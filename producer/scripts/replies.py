"""Replies of the scripts: one frozen dataclass per kind; `job_id` is the text of an address."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenbus.producer.scripts.evidence import Evidence

from tokenbus.producer.contract.keys import KNOWN_VERSIONS, WIRE_VERSION

_VERSION = re.compile(rb'\{"v":(\d{1,9})[,}]')


class JobState(StrEnum):
    """Where a job record stands."""

    DELAYED = "delayed"
    WAITING = "waiting"
    HELD = "held"
    ENDING = "ending"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class Place:
    """Where an accepted job stands; `eta_ms` is None until a drain rate was measured."""

    job_id: str
    state: JobState
    jobs_ahead: int
    tokens_ahead: int
    eta_ms: int | None


@dataclass(frozen=True, slots=True)
class Submitted:
    """The job was accepted now (`created`) or is known from an earlier try."""

    place: Place
    created: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """The job was not accepted: `conflict`, `late`, `gone`, or `full_` and what is full:
    `tenant`, `pool` or `memory` (of the server).

    `gone` answers an inbox entry that another worker took; it is nobody's fault.
    """

    status: str
    queued_tokens: int = 0
    max_tokens: int = 0
    retry_after_ms: int = 0
    ticket: int = 0
    eta_ms: int = 0


@dataclass(frozen=True, slots=True)
class Ending:
    """A job that has to end, or to complete, without an owner.

    `done` says that its record is complete and only the later steps are left. `finish` is the
    JSON of the finish that the record asks for; usage is filled in from the log. `version` is the
    wire version of the job, `listen` the secret of the client that listens, or empty.
    """

    job_id: str
    epoch: int
    done: bool
    finish: str
    version: int = WIRE_VERSION
    listen: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class InboxEntry:
    """One raw entry; `body` is empty where it had no `job` field.

    `ending` is set, and the entry already gone, where the script itself refused the entry.
    `reply_to` is the secret under which its sender waits for an answer, if it does.
    """

    entry_id: str
    body: bytes
    ending: Ending | None = None
    reply_to: str = ""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A raw entry was refused: what is to be ended, and whether the name it asked for is free."""

    ending: Ending
    is_name_free: bool


class PullStatus(StrEnum):
    """Why a pull stopped.

    `jobs`: it returns some. `empty`: nothing waits, wait on the bell. `full`: work waits that does
    not fit; wait for pages (at most a second, others may have made room). `suspect`: a suspect
    waits for others to pass, or for an empty worker; come back when something has left. `clear`:
    one that runs alone waits, and this worker has claimed it: pulls bring nothing more until it
    holds nothing. `spared`: what waits is left to workers that hold its prefix; look again after
    `retry_ms`. `paused`: pulls take nothing until an operator resumes the pool, which rings the
    bell. `reconcile`: the serial is not current.
    """

    JOBS = "jobs"
    EMPTY = "empty"
    FULL = "full"
    SUSPECT = "suspect"
    CLEAR = "clear"
    SPARED = "spared"
    PAUSED = "paused"
    RECONCILE = "reconcile"


@dataclass(frozen=True, slots=True)
class PulledJob:
    """One job that now belongs to the caller, at `epoch`; its start is a takeover.

    `pages` is what the pull counted for it, beside `shared_pages` that jobs of its prefix have
    already. `head_of_line` marks the one job that did not fit.
    `num_logged` is what its last owner reported as logged (0 = fresh as far as the queue knows).
    `age_ms` is how long ago it was accepted, by the server's clock. `prefix` names what its prompt
    begins with, empty if that is nothing of note. `evidence` is what speaks against it. `listen` is
    the secret of the client that listens, empty if none does, `model` the model that it asks for,
    empty for whatever there is.
    """

    job_id: str
    epoch: int
    attempts: int
    priority: int
    tenant: str
    pages: int
    head_of_line: bool
    num_logged: int
    remaining_ms: int | None
    request: bytes
    age_ms: int = 0
    prefix: str = ""
    shared_pages: int = 0
    num_choices: int = 1
    evidence: Evidence | None = None
    listen: str = field(default="", repr=False)
    model: str = ""

    @property
    def version(self) -> int:
        """Return the wire version that the job keeps, which its request begins with.

        A request of a version that is not known is refused, and that is said in this one.
        """
        found = _VERSION.match(self.request)
        version = int(found[1]) if found else WIRE_VERSION
        return version if version in KNOWN_VERSIONS else WIRE_VERSION


@dataclass(frozen=True, slots=True)
class Pulled:
    """The answer to a pull; `endings` are entries it refused, to be ended at once.

    `retry_ms`, if not 0, is when what was left to other workers is nobody's any more. `is_left`
    says whether anything waited still; what comes where nothing did rings the bell.
    """

    status: PullStatus
    jobs: tuple[PulledJob, ...] = ()
    endings: tuple[Ending, ...] = ()
    retry_ms: int = 0
    is_left: bool = True


@dataclass(frozen=True, slots=True)
class HeldEntry:
    """One entry of a worker's `held`; `flag` is empty, `cancel` or `expire`."""

    job_id: str
    epoch: int
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Orphan:
    """A job whose worker is dead; `num_held` counts those of that worker."""

    worker: str
    job_id: str
    epoch: int
    priority: int
    attempts: int
    num_held: int = 1


class RequeueStatus(StrEnum):
    """What became of a job that was handed back; refused: the caller no longer owns it."""

    WAITING = "waiting"
    ENDING = "ending"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class CancelReply:
    """`unknown`, `done` (already ended), `held` (its owner was told) or `ending` (end it now).

    `job_id` is the address at which the job was found, where it was held or is ending.
    """

    status: str
    ending: Ending | None = None
    job_id: str = ""


@dataclass(frozen=True, slots=True)
class TickReply:
    """What a tick found: jobs to end now, and whether it left work that is due."""

    endings: tuple[Ending, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class JobRecord:
    """The part of a record that readers and operators ask for.

    `is_inherited`: a release of version 1 accepted the job, under its id alone whatever its tenant.
    `is_dropped`: it ended, and its result was dropped for room.
    """

    job_id: str
    state: JobState
    epoch: int
    owner: str
    attempts: int
    tenant: str
    priority: int
    finish: str
    version: int = WIRE_VERSION
    is_inherited: bool = False
    is_dropped: bool = False

    def is_of(self, tenant: str) -> bool:
        """Tell whether it is that of a tenant which asked at the tenant's address.

        An inherited one may be another's; what never became a job is nobody's.
        """
        return not self.is_inherited or self.tenant in (tenant, "")

    def is_inherited_by(self, tenant: str) -> bool:
        """Tell whether a tenant finds it at its id alone, as version 1 left it."""
        return self.is_inherited and self.tenant == tenant


class LogStatus(StrEnum):
    """Answers of the log scripts (rules R2 to R4).

    `ok`: written (takeover: marker written). `log`: takeover found its own marker, nothing written.
    `already`: what was to be written is there. `gap`: go to `last` + 1. `behind`: take over again
    at the own epoch. `fenced`: a higher epoch owns the log. `terminal`: the job has ended, `finish`
    says how. `nolog`: there is no log. `error`: this item failed by itself, `finish` says why.
    """

    OK = "ok"
    LOG = "log"
    ALREADY = "already"
    GAP = "gap"
    BEHIND = "behind"
    FENCED = "fenced"
    TERMINAL = "terminal"
    NOLOG = "nolog"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class LogReply:
    """One answer of a log script; `last` and `epoch` are the log's, where there is one.

    `entries` counts those of the log where its owner goes on writing, else it is 0. `epoch_before`
    is that of the owner before, where a reaper's takeover stands.
    """

    status: LogStatus
    epoch: int = 0
    last: int = 0
    finish: str = ""
    entries: int = 0
    epoch_before: int = 0
