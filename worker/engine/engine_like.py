"""The interface of an engine in its process: the one of a model, or the null one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.types import EngineLimits, EngineStats, Request, StepOutput


class EngineLike(Protocol):
    """An engine that one thread steps."""

    @property
    def limits(self) -> EngineLimits:
        """Sizes in tokens and pages."""
        ...

    @property
    def has_work(self) -> bool:
        """True while any request is unfinished."""
        ...

    def add(self, request: Request) -> bool:
        """Queue a request; return whether a step is better made before the next one is queued."""
        ...

    @property
    def is_stalled(self) -> bool:
        """True while everything left waits for something outside the steps."""
        ...

    def abort(self, request_id: int, choice: int | None = None) -> None:
        """End a request, or one choice of it."""
        ...

    def step(self) -> StepOutput:
        """Run one step."""
        ...

    def stats(self) -> EngineStats:
        """Count pages, requests and tokens."""
        ...

    @property
    def follower_pids(self) -> tuple[int, ...]:
        """Process ids of the ranks that run the model together with this one."""
        ...

    @property
    def topology(self) -> str:
        """Where the ranks are, for people; empty where there is one."""
        ...

    def check_ranks(self) -> None:
        """Raise RankLost if a rank was lost; a step does so itself."""
        ...

    def learn_answer(self, name: int, group: str, token_ids: Sequence[int], /) -> None:
        """Let drafts for a group come from an answer."""
        ...

    def drop_answers(self, names: Sequence[int], /) -> None:
        """Let no more drafts come from the answers of these names."""
        ...
