"""The end of a choice: why it ended, and by which stop string or id."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Finish


class ChoiceEnd(NamedTuple):
    """Why a choice ended: `stop`, `length` or `tool_calls`, and of which stop string or id."""

    reason: str
    stop_reason: int | str | None = None


def ending_of(finish: Finish, choice: int) -> ChoiceEnd:
    """Return how a choice of a finished job ended."""
    return ChoiceEnd(finish.finish_reason_of(choice), finish.stop_reason_of(choice))
