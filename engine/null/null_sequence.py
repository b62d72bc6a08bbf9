"""One request in the engine without a model, and when the fault that is planted in it shows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.null.null_config import NullConfig
    from tokenbus.engine.types import Request


@dataclass(slots=True)
class NullSequence:
    """One request: tokens so far per choice, the pages it holds, and its planted faults.

    `first` counts the tokens of the first choice that it came with.
    """

    request: Request
    order: int
    lengths: list[int]
    done: list[bool]
    faults: set[int]
    first: int
    num_prefilled: int = 0
    pages: list[int] = field(default_factory=list)
    running: bool = False

    @property
    def num_to_prefill(self) -> int:
        """Count prompt and already generated tokens, which a re-prefill computes together."""
        return len(self.request.prompt_ids) + sum(self.lengths)

    def crashes(self, config: NullConfig, running: Iterable[NullSequence]) -> bool:
        """Tell whether it kills the process now, beside those that run."""
        length, other_id = self.lengths[0], config.crash_with_id
        return (
            config.crash_id in self.faults
            and length >= config.crash_at_index
            and length - self.first >= config.crash_after_tokens
            and (other_id is None or any(other_id in other.faults for other in running))
        )
