"""Errors of the worker: one leaf per decision a caller can take."""

from __future__ import annotations

from enum import StrEnum


class WorkerError(Exception):
    """Base of everything the worker raises on purpose."""


class SettingsInvalid(WorkerError):
    """A setting is missing or out of bounds; the message names it."""


class EngineStartFailed(WorkerError):
    """The engine process did not come up; `kind` is the class of the error it reported."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"the engine did not start: {message}")
        self.kind = kind


class DeathCause(StrEnum):
    """What an engine died of; each is counted apart.

    `signal`: it was killed, or crashed in native code. `exit`: it ended by itself. `error`: it
    raised. `memory`: it found no memory on its device or host. `hang`: it moved no more. `rank`:
    another rank of its group ended, hung or fell out of step. `start`: another in its place did not
    come up.
    """

    SIGNAL = "signal"
    EXIT = "exit"
    ERROR = "error"
    MEMORY = "memory"
    HANG = "hang"
    RANK = "rank"
    START = "start"


class EngineDied(WorkerError):
    """The engine process ended or hung; its jobs go back to the queue."""

    def __init__(self, message: str, cause: DeathCause = DeathCause.EXIT) -> None:
        super().__init__(message)
        self.cause = cause


class PublisherDied(WorkerError):
    """A publisher process ended; the worker goes down with it and others take its jobs over."""


class SessionLost(WorkerError):
    """The server did not answer or the lease is stale: reconcile before anything is written."""


class JobRefused(WorkerError):
    """A job can never run here; `field` names what is wrong with it, `code` is the failure's."""

    def __init__(self, code: str, field: str | None, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.field = field
