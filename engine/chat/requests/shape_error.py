"""The error of a request that has no known shape."""

from __future__ import annotations


class ShapeInvalid(ValueError):
    """A part of a request means nothing here; `field` is its path, `message` one sentence."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field
        self.message = message
