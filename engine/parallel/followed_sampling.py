"""The sampling of a follower: rank 0 draws, and what it drew comes over the devices."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from tokenbus.engine.sampling.logprobs import RawLogprobs
from tokenbus.engine.sampling.plan import SamplingPlan
from tokenbus.engine.sampling.sampler import SampledTokens, SamplingState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from tokenbus.engine.types import SamplingParams


class FollowedSampling(SamplingState):
    """A sampling state without rows.

    told: the plan by which rank 0 draws the next step, on which graphs and logits depend.
    """

    def __init__(self) -> None:
        self.told = SamplingPlan()
        self.padding_row = 0

    def set_row(
        self,
        row: int,
        params: SamplingParams,
        choice: int,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int] = (),
    ) -> None:
        """Leave the rules of a row to rank 0."""

    def clear_row(self, row: int) -> None:
        """Do nothing."""

    def plan(self, rows: Sequence[int]) -> SamplingPlan:  # noqa: ARG002
        """Return the plan of rank 0."""
        return self.told

    def reads_history(self, plan: SamplingPlan) -> bool:  # noqa: ARG002
        """Tell that nothing here depends on tokens: all places of a draft go at once."""
        return False

    def flush(self) -> None:
        """Do nothing."""

    def sample_with_plan(
        self,
        logits: Tensor,  # noqa: ARG002
        rows: Tensor,
        positions: Tensor,  # noqa: ARG002
        plan: SamplingPlan,  # noqa: ARG002
        bitmask: Tensor | None = None,  # noqa: ARG002
    ) -> SampledTokens:
        """Return room for the tokens that rank 0 draws."""
        return SampledTokens(torch.zeros_like(rows), None)

    def score(self, logits: Tensor, token_ids: Tensor, num_top: int) -> RawLogprobs:  # noqa: ARG002
        """Return scores that nobody reads."""
        nothing = torch.empty(len(token_ids), 0, device=token_ids.device)
        return RawLogprobs(token_ids, nothing, nothing, nothing, nothing)

    def prepare_rules(self) -> bool:
        """Tell that rules are no matter of this rank."""
        return True

    def rehearse(self, logits_of: Callable[[bool], Tensor]) -> None:
        """Compute the logits of both kinds that rank 0 rehearses its draws with."""
        for exact in (False, True):
            logits_of(exact)
