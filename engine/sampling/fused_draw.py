"""Filter and draw on a GPU: a few launches over logits in any dtype, no sort, no softmax stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.sampling.plan import Feature
from tokenbus.kernels.sampling.sample_rows import SamplingWorkspace, sample_rows
from tokenbus.kernels.sampling.uniforms import row_uniforms

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from tokenbus.engine.sampling.plan import SamplingPlan
    from tokenbus.engine.sampling.row_table import RowScalars


class FusedDraw:
    """The draw of `SamplingState` as a kernel, with its scratch memory."""

    def __init__(self, max_rows: int, vocab_size: int, device: torch.device) -> None:
        self._workspace = SamplingWorkspace(max_rows, vocab_size, device)

    def __call__(
        self, logits: Tensor, scalars: RowScalars, positions: Tensor, plan: SamplingPlan
    ) -> Tensor:
        """logits: [M, V], scalars and positions of the same rows -> token ids [M] int64."""
        return sample_rows(
            logits,
            scalars.temperature,
            scalars.top_k,
            scalars.top_p,
            scalars.min_p,
            row_uniforms(scalars.key, scalars.increment, positions),
            scalars.is_random,
            self._workspace,
            use_top_k=plan.has(Feature.TOP_K),
            use_top_p=plan.has(Feature.TOP_P),
            use_min_p=plan.has(Feature.MIN_P),
        )
