"""Lower bounds of a workload: bytes that have to be read, operations that have to be done."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tokenbus.engine.bench.figures import Achieved
from tokenbus.engine.models.decoder import Decoder

if TYPE_CHECKING:
    from tokenbus.engine.bench.figures import RunFigures
    from tokenbus.engine.bench.workloads import OfflineWorkload
    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.weights.loader import LoadedModel


@dataclass(frozen=True, slots=True)
class Demand:
    """What one model needs per step and per token.

    layer_weights, head_weights: numbers that a token is multiplied by in all layers and in the
    output head; weight_bytes: what is read of weights in every step; kv_bytes: of one number of a
    key or value. expert_bytes: of one expert in each mixture, 0 without mixtures.
    """

    layer_weights: int
    head_weights: int
    weight_bytes: int
    kv_bytes: int
    specs: tuple[AttentionSpec, ...]
    expert_bytes: int = 0

    @classmethod
    def of(cls, loaded: LoadedModel) -> Demand | None:
        """Count a model's weights; None if they are transformers' own."""
        model = loaded.model
        if not isinstance(model, Decoder):
            return None
        tensors = model.tensors
        routers = sum(mixture.router.nbytes for mixture in tensors.mixtures())
        return cls(
            layer_weights=sum(layer.weights_per_token() for layer in tensors.layers),
            head_weights=prod(tensors.lm_head.weight.shape),
            weight_bytes=routers + sum(linear.weight.nbytes for linear in tensors.linears()),
            kv_bytes=loaded.backend.kv_dtype(loaded.dtype).itemsize,
            specs=tuple(model.attention_specs),
            expert_bytes=sum(
                stack.weight.nbytes // mixture.shape.num_experts
                for mixture in tensors.mixtures()
                for stack in mixture.stacks()
            ),
        )

    def achieved(self, workload: OfflineWorkload, run: RunFigures) -> Achieved:
        """Divide what the workload needs by the time of a run."""
        kv_bytes = attention_flops = 0
        # A cached prefix is shared by all, so any split over the prompts gives the same sum.
        cached_share = run.cached_tokens / max(run.prompt_tokens, 1)
        for prompt, length in zip(workload.prompts, workload.output_lens, strict=True):
            begin, end = len(prompt), len(prompt) + length
            for spec in self.specs:
                seen = _visible(end, spec) - _visible(begin, spec)
                kv_bytes += seen * 2 * spec.num_kv_heads * spec.head_dim * self.kv_bytes
                read = seen + round(_visible(begin, spec) * (1 - cached_share))
                attention_flops += read * 4 * spec.num_heads * spec.head_dim
        computed = run.prompt_tokens - run.cached_tokens + run.output_tokens
        flops = 2 * (self.layer_weights * computed + self.head_weights * run.output_tokens)
        weight_bytes = self.weight_bytes + self.expert_bytes * (run.distinct_experts or 0.0)
        return Achieved(
            read_tb_s=(weight_bytes * run.steps + kv_bytes) / run.duration_s / 1e12,
            tflop_s=(flops + attention_flops) / run.duration_s / 1e12,
        )


def _visible(num_tokens: int, spec: AttentionSpec) -> int:
    """Sum the tokens that each of the first `num_tokens` positions sees."""
    window = spec.sliding_window or num_tokens
    growing = min(num_tokens, window)
    return growing * (growing + 1) // 2 + (num_tokens - growing) * window
