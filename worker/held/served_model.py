"""The served model: under which names a worker is asked for what it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.chat.requests.request_rules import check_model
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.worker.errors import JobRefused

if TYPE_CHECKING:
    from collections.abc import Sequence


class ServedModel:
    """Refuses jobs that ask for another model; a job that names none takes what there is."""

    def __init__(self, names: Sequence[str]) -> None:
        """Answer to these names; the first is told to who asked for another."""
        self._names = names

    def check(self, asked: str) -> None:
        """Compare what a job asks for, empty for anything. Raises: JobRefused."""
        if not asked:
            return
        try:
            check_model(asked, self._names)
        except ShapeInvalid as error:
            raise JobRefused("invalid_request", error.field, error.message) from None
