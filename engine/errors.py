"""Errors of the engine: one leaf per decision a caller can take."""

from __future__ import annotations


class EngineError(Exception):
    """Base of everything the engine raises on purpose."""


class CacheUnusable(EngineError):
    """The folder for models and compiled kernels cannot be made, or nothing says where it is."""


class ModelNotFound(EngineError):
    """No model lies at the given path, hub id or alias."""


class ModelBroken(EngineError):
    """Files of the model are missing, truncated or fail their checksum."""


class ModelUnsupported(EngineError):
    """The architecture cannot run on paged attention; the message says why."""


class PagePoolExhausted(EngineError):
    """More pages were asked for than are free or evictable."""


class SequenceTooLong(EngineError):
    """Prompt plus output exceed the model's context or the whole page pool."""


class RequestRejected(EngineError):
    """A request is invalid; `field` names the offending parameter."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}")
        self.field = field


class GrammarRejected(RequestRejected):
    """A grammar does not compile or uses an unsupported keyword."""


class RequestFailed(EngineError):
    """A request was accepted and could not be answered; the message says why."""


class DeviceFault(EngineError):
    """The device failed under a step; no sequence is to blame."""


class RankLost(EngineError):
    """A rank of a tensor-parallel group ended, hangs or fell out of step; no sequence is to blame.

    `Engine.step` and `Engine.check_ranks` raise it, on rank 0, which alone has an engine; the first
    is asked with work, the second without. All followers are dead by then, and nothing of the group
    can be used any more: its owner builds another engine, as after a DeviceFault.
    """

    def __init__(self, rank: int, why: str) -> None:
        super().__init__(f"rank {rank} {why}")
        self.rank = rank
        self.why = why


class ModelUnsound(EngineError):
    """The model gives no finite numbers for anything; no sequence is to blame."""


class GrammarFailed(GrammarRejected, RequestFailed):
    """The grammar of an accepted request turned out to be of no use; `field` has asked for it."""


class IntegrityError(EngineError):
    """The page pool's arithmetic does not add up; the message holds the numbers."""
