"""A prepared job: its prompt as token ids, its sizes known exactly."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tokenbus.engine.types import Request, SamplingParams
from tokenbus.producer.contract.cache_scope import cache_scope
from tokenbus.worker.messages.engine import AddRequest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.grammar.tool_reader import ToolReader
    from tokenbus.producer.contract.cache_scope import CacheGroups
    from tokenbus.producer.contract.schema import JobRequest


@dataclass(frozen=True, slots=True)
class PreparedJob:
    """A request whose prompt is token ids and whose sizes are known exactly.

    Of two thousand ids every look at each costs as much as the rest of a job's way to the engine,
    so they stay an array. `tool_reader` takes tool calls out of the output, where there may be any.
    `cache_groups` is the owner's list of cache groups. `sampling` has the numbers of `params` that
    are the checkpoint's, where the request gave none.
    """

    request: JobRequest
    prompt_ids: Sequence[int]
    params: SamplingParams
    tool_reader: ToolReader | None = None
    cache_groups: CacheGroups = field(default_factory=dict)
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def num_prompt_tokens(self) -> int:
        """Count the prompt's tokens."""
        return len(self.prompt_ids)

    @property
    def cache_salt(self) -> str:
        """Name those whose jobs may share pages."""
        return cache_scope(self.request, self.cache_groups)

    def to_engine(
        self,
        request_id: int,
        priority: int,
        lane: str,
        resumed_ids: tuple[tuple[int, ...], ...],
        done_choices: tuple[int, ...],
    ) -> AddRequest:
        """Return what gives it to the engine; resumed ids are empty for a fresh start."""
        request = Request(
            request_id,
            (),
            self.params,
            priority=priority,
            cache_salt=self.cache_salt,
            lane=lane,
            tenant=self.request.tenant,
            resumed_ids=resumed_ids if any(resumed_ids) else (),
            done_choices=done_choices,
        )
        return AddRequest(request, array("i", self.prompt_ids).tobytes())
