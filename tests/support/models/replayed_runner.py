"""A graph runner on any device: what it would replay, it computes anew."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.execution.graph_runner import GraphRunner

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    from tokenbus.engine.sampling.plan import SamplingPlan
    from tokenbus.engine.sampling.sampler import SampledTokens


class _Computed:
    """Stands in for a captured step."""

    def __init__(self, compute: Callable[[], SampledTokens]) -> None:
        self._compute = compute

    def replay(self) -> None:
        """Compute the step over what is staged now."""
        self.sampled = self._compute()


class ReplayedRunner(GraphRunner):
    """Stages steps and pads them to their buckets as on a GPU."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, max_batch_tokens=4096, **options)

    def _captured(self, size: int, plan: SamplingPlan) -> Any:
        return _Computed(lambda: self._decode_step(size, plan))

    def _capture_pass(self, compute: Callable[[], None]) -> Callable[[], None]:
        return compute

    def _capture_parts(self, compute: Callable[[Callable[[], None]], None]) -> Callable[[], None]:
        return partial(compute, lambda: None)


def need_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a graph runner be made where there is no GPU."""
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: None)
