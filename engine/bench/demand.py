"""What a workload demands of a machine at least: bytes to read, operations to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.engine.models.decoder import Decoder

if TYPE_CHECKING:
    from tokenbus.engine.bench.measure import RunFigures
    from tokenbus.engine.bench.workloads import OfflineWorkload
    from tokenbus.engine.interfaces import AttentionSpec
    from tokenbus.engine.weights.loader import LoadedModel


@dataclass(frozen=True, slots=True)
class Achieved:
    """Demand divided by a run's duration.

    read_tb_s counts all weights once per step and the visible keys and values once per sequence and
    step, whether or not a prefix was read once for several. tflop_s counts multiplications and
    additions of linears and attention, cached prompt tokens left out.
    """

    read_tb_s: float
    tflop_s: float


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model needs per step and per token.

    layer_weights, head_weights: numbers of weights of all layers and of the output head.
    """

    layer_weights: int
    head_weights: int
    element_bytes: int
    specs: tuple[AttentionSpec, ...]

    @classmethod
    def of(cls, loaded: LoadedModel) -> Demand | None:
        """Count a model's weights; None if they are packed away or transformers' own."""
        model = loaded.model
        if not isinstance(model, Decoder):
            return None
        head = model.lm_head.weight.numel()
        layers = sum(linear.weight.numel() for layer in model.layers for linear in layer.linears())
        if not layers or not head:
            return None
        return cls(layers, head, loaded.dtype.itemsize, tuple(loaded.model.attention_specs))

    def achieved(self, workload: OfflineWorkload, run: RunFigures) -> Achieved:
        """Divide what the workload needs by the time of a run."""
        kv_bytes = attention_flops = 0
        # A cached prefix is shared by all, so any split over the prompts gives the same sum.
        cached_share = run.cached_tokens / max(run.prompt_tokens, 1)
        for prompt, length in zip(workload.prompts, workload.output_lens, strict=True):
            begin, end = len(prompt), len(prompt) + length
            for spec in self.specs:
                seen = _visible(end, spec) - _visible(begin, spec)
                kv_bytes += seen * 2 * spec.num_kv_heads * spec.head_dim * self.element_bytes
                read = seen + round(_visible(begin, spec) * (1 - cached_share))
                attention_flops += read * 4 * spec.num_heads * spec.head_dim
        computed = run.prompt_tokens - run.cached_tokens + run.output_tokens
        weight_bytes = (self.layer_weights + self.head_weights) * self.element_bytes
        flops = 2 * (self.layer_weights * computed + self.head_weights * run.output_tokens)
        return Achieved(
            read_tb_s=(weight_bytes * run.steps + kv_bytes) / run.duration_s / 1e12,
            tflop_s=(flops + attention_flops) / run.duration_s / 1e12,
        )


def _visible(num_tokens: int, spec: AttentionSpec) -> int:
    """Sum the tokens that each of the first `num_tokens` positions sees."""
    window = spec.sliding_window or num_tokens
    growing = min(num_tokens, window)
    return growing * (growing + 1) // 2 + (num_tokens - growing) * window
