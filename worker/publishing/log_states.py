"""States of a job log: where it is going, what may be done with it, and whose turn it is."""

from __future__ import annotations

from enum import Enum


class LogState(Enum):
    """Where a job log is going; `JobLog.move_to` holds the legal moves.

    `open`: tokens come. Every log begins so.
    `ending`: the outcome is decided, by the step reader (the last choice has ended) or by the
    worker's order; tokens or the terminal entry are not in the log yet.
    `committed`: the terminal entry is in the log, written by this owner or by another; the log
    writer moves it here when the log says so. Should the server forget that entry, the next
    takeover moves it back to `ending`, and the entry is written again.
    `returning`: the worker hands the job back; what it has is still logged.
    `dropped`: the worker has let the job go, by its order; nothing is written any more.
    """

    # Members are compared as objects, and so hashed: by their names it takes five times as long.
    __hash__ = object.__hash__

    OPEN = "open"
    ENDING = "ending"
    COMMITTED = "committed"
    HANDING_BACK = "returning"
    DROPPED = "dropped"


LEGAL_MOVES = {
    LogState.OPEN: {
        LogState.ENDING,
        LogState.COMMITTED,
        LogState.HANDING_BACK,
        LogState.DROPPED,
    },
    LogState.ENDING: {LogState.COMMITTED, LogState.DROPPED},
    # A server that is rolled back may forget the terminal entry: it is written again.
    LogState.COMMITTED: {LogState.ENDING, LogState.DROPPED},
    LogState.HANDING_BACK: {LogState.COMMITTED, LogState.DROPPED},
    LogState.DROPPED: set(),
}


class LogAccess(Enum):
    """What this owner knows of the log and may do with it; `JobLog.set_access` holds the moves.

    `unknown`: a takeover has to come first.
    `ahead`: the engine has begun from nothing. The first tokens create the log, or a takeover does
    where none come for a while; a log that has tokens of any other start will not do.
    `restoring`: the log is taken over, and what earlier owners logged is being read.
    `known`: the log is taken over and ends at `num_logged`.
    `barred`: the log is another's, breaks the rules or cannot be read; it is left alone until the
    session opens anew.

    The publisher moves it by what a takeover answers, and back when the session opens; the log
    writer by what appends and ends answer.
    """

    __hash__ = object.__hash__

    UNKNOWN = "unknown"
    AHEAD = "ahead"
    RESTORING = "restoring"
    KNOWN = "known"
    BARRED = "barred"


LEGAL_ACCESS = {
    LogAccess.UNKNOWN: {LogAccess.KNOWN, LogAccess.BARRED},
    LogAccess.AHEAD: {LogAccess.KNOWN, LogAccess.BARRED},
    LogAccess.RESTORING: {LogAccess.KNOWN, LogAccess.UNKNOWN, LogAccess.BARRED},
    LogAccess.KNOWN: {
        LogAccess.UNKNOWN,
        LogAccess.AHEAD,
        LogAccess.RESTORING,
        LogAccess.BARRED,
    },
    LogAccess.BARRED: {LogAccess.UNKNOWN, LogAccess.AHEAD},
}


class Turn(Enum):
    """A job's turn with its log writer: none, in its queue, or in the call that is under way.

    The publisher and the step reader queue a job that has no turn; the log writer does the rest.
    """

    NONE = "none"
    QUEUED = "queued"
    IN_CALL = "in_call"
