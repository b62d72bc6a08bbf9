"""Containment: what is raised on behalf of one of many ends that one alone.

Engine, offline API and publishers work through sequences, requests or job logs, here called keys,
in one loop. Each piece of work for a key runs under its guard: what is raised there becomes the
key's fault, which the owner of the loop takes with `take` and carries out. What nobody's input can
cause (`escapes`: the device is gone, pages do not add up) passes every guard.
"""

from __future__ import annotations

import logging
from traceback import format_tb
from typing import TYPE_CHECKING, Generic, Self, TypeVar

from tokenbus.engine.errors import EngineError, GrammarRejected, IntegrityError
from tokenbus.engine.types import Fault, FaultCode

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

K = TypeVar("K")
T = TypeVar("T")

_log = logging.getLogger(__name__)


def breaks_arithmetic(error: Exception) -> bool:
    """Tell whether an error says that the engine's own books are wrong."""
    return isinstance(error, IntegrityError)


class Guard(Generic[K]):
    """Turns an exception of its block into a fault of `key`.

    A loop over hundreds of keys enters one guard, sets `key` in each round, and enters it again
    for the rest after it left by an exception: a round then costs one assignment.
    """

    __slots__ = ("_code", "_containment", "_doing", "key")

    def __init__(
        self, containment: Containment[K], key: K | None, doing: str, code: FaultCode
    ) -> None:
        self.key = key
        self._containment = containment
        self._doing = doing
        self._code = code

    def __enter__(self) -> Self:
        """Begin the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Keep what was raised, unless it escapes or no key is set yet."""
        if not isinstance(error, Exception) or self.key is None:
            return False
        return self._containment.keep(self.key, error, self._doing, self._code)


class Containment(Generic[K]):
    """The faults of keys that were not carried out yet, and the guards that find them."""

    def __init__(self, escapes: Callable[[Exception], bool] = breaks_arithmetic) -> None:
        self._escapes = escapes
        self._faults: dict[K, Fault] = {}

    def guard(self, key: K | None, doing: str, code: FaultCode = FaultCode.ENGINE) -> Guard[K]:
        """Return a guard for a block that does something for `key`; `doing` completes "while"."""
        return Guard(self, key, doing, code)

    def keep(self, key: K, error: Exception, doing: str, code: FaultCode) -> bool:
        """Make an exception the fault of a key, whose first one counts; False if it escapes."""
        if self._escapes(error):
            return False
        if isinstance(error, GrammarRejected):
            code = FaultCode.GRAMMAR
        message = str(error)
        if not isinstance(error, EngineError):
            # Where, not what: the words may quote the request.
            kind, frames = type(error).__name__, format_tb(error.__traceback__)
            _log.warning("%s contained while %s\n%s", kind, doing, "".join(frames))
            message = f"{kind} while {doing}: {message}"
        self._faults.setdefault(key, Fault(code, message))
        return True

    def fail(self, key: K, fault: Fault) -> None:
        """Give a key a fault that was found, not raised; the first one counts."""
        self._faults.setdefault(key, fault)

    def split(
        self, keys: Sequence[K], work: Callable[[slice], T], doing: str
    ) -> list[tuple[slice, T | None]]:
        """Do `work` for all keys at once; if that raises, for each alone.

        `work` gets the part of the keys that it is for. Returns: the parts in order, each with what
        came of it, None for a key whose own work raised.
        Raises: what escapes; the first error where it is that of each of several keys, for then it
            is not theirs.
        """
        whole = slice(0, len(keys))
        try:
            return [(whole, work(whole))]
        except Exception as error:
            if self._escapes(error):
                raise
            first = error
        parts: list[tuple[slice, T | None]] = []
        found: list[tuple[K, Exception]] = []
        for idx, key in enumerate(keys):
            part = slice(idx, idx + 1)
            try:
                parts.append((part, work(part)))
            except Exception as error:
                if self._escapes(error):
                    raise
                found.append((key, error))
                parts.append((part, None))
        if len(found) == len(keys) > 1:
            raise first
        for key, cause in found:
            self.keep(key, cause, doing, FaultCode.ENGINE)
        return parts

    def take(self) -> dict[K, Fault]:
        """Return the faults since the last call; the caller ends those keys."""
        faults, self._faults = self._faults, {}
        return faults
