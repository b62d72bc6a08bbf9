"""Errors of the control service: one leaf per decision a caller can take."""

from __future__ import annotations

from tokenbus.worker.errors import WorkerError


class ControlError(WorkerError):
    """Base of everything the control service raises on purpose."""


class JobNotPlain(ControlError):
    """An arq job or result is not JSON, pickled most likely; it is never loaded."""


class RemoteFailure(ControlError):
    """An arq job failed with an exception of another process; `kind` is its class."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class GenerationFailed(ControlError):
    """A generation ended without finishing.

    `code` is the failure's, `cancelled` or `expired`; `text` is what was generated before.
    """

    def __init__(self, code: str, message: str, text: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.text = text


class AddressRefused(ControlError, OSError):
    """A webhook points to where it may not go; it is never tried again."""
