"""Errors of what is stored: one leaf per decision a caller can take."""

from __future__ import annotations

from tokenbus.producer.errors import ProducerError


class StoreError(ProducerError):
    """Base of what the store raises on purpose."""


class NotStored(StoreError):
    """Nothing of this id is the owner's: it never was, is deleted, has expired, or is another's."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} {name}")
        self.kind = kind
        self.name = name


class StoreFull(StoreError):
    """An owner's files, or one file, would take more bytes than they may."""

    def __init__(self, what: str, most: int) -> None:
        super().__init__(f"{what} may take {most} bytes")
        self.most = most


class StoreUnusable(StoreError):
    """The place for files cannot be written or has no meaning here; the message says which."""


class LeaseTaken(StoreError):
    """Another service runs the batch by now; what is left of this run changes nothing."""

    def __init__(self, batch_id: str) -> None:
        super().__init__(f"another service runs {batch_id}")
