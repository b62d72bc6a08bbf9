"""Errors of the worker: one leaf per decision a caller can take."""

from __future__ import annotations


class WorkerError(Exception):
    """Base of everything the worker raises on purpose."""


class SettingsInvalid(WorkerError):
    """A setting is missing or out of bounds; the message names it."""


class EngineStartFailed(WorkerError):
    """The engine process did not come up; `kind` is the class of the error it reported."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"the engine did not start: {message}")
        self.kind = kind


class EngineDied(WorkerError):
    """The engine process ended or hung; its jobs go back to the queue."""


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
