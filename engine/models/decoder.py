"""The decoder: one forward pass for every family, written in the steps of an Ops."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.parallel.collective import Alone, Collective

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from torch import Tensor

    from tokenbus.engine.interfaces import ForwardContext, PagedModel
    from tokenbus.engine.kv_cache import AttentionSpec
    from tokenbus.engine.models.layers import DecoderLayer, DecoderTensors
    from tokenbus.engine.models.ops import Ops


class Decoder:
    """A decoder-only transformer over pages (see PagedModel).

    The pass makes no host decision that depends on tensor values, so it can be captured in a
    CUDA graph wherever its Ops can.

    Of several ranks each has a part of the heads, of the MLPs' inner features and of the
    vocabulary. What leaves attention or MLP is a part of a sum, which all ranks get whole; so what
    lies between, the norms and the residual, is the same on all of them.
    """

    def __init__(
        self, tensors: DecoderTensors, ops: Ops, collective: Collective | None = None
    ) -> None:
        """Run `tensors` by `ops`; with a collective they are one rank's part of the model's."""
        config = tensors.config
        self._ranks = collective or Alone()
        self.config = config
        self.tensors = tensors
        self.ops = ops
        self.vocab_size = config.vocab_size
        self.attention_specs: list[AttentionSpec] = [layer.spec for layer in tensors.layers]
        self.embed_scale = config.embed_scale
        if config.embed_scale_rounded:
            rounded = torch.tensor(config.embed_scale, dtype=tensors.embedding.dtype)
            self.embed_scale = rounded.item()
        ops.prepare(tensors)

    def forward(self, token_ids: Tensor, ctx: ForwardContext) -> Tensor:
        """token_ids: [T] int64 -> hidden states [T, H] before the final norm, not rounded.

        The sum over layers is kept in float32: rounded to bfloat16 after every layer it would cost
        more precision than all that is computed in between.
        """
        tensors = self.tensors
        residual = self.ops.embed(token_ids, tensors.embedding, self.embed_scale)
        done = self.ops.run_layers(tensors, residual, ctx)
        if done is not None:
            return done
        branch: Tensor | None = None
        for layer in ctx.each(tensors.layers):
            branch, residual = self._layer(layer, branch, residual, ctx)
        return residual if branch is None else residual.float() + branch

    @contextmanager
    def abridged(self) -> Iterator[None]:
        """Take passes through few layers inside, which launch every kernel that all of them do."""
        whole, self.tensors = self.tensors, self.tensors.abridged()
        try:
            yield
        finally:
            self.tensors = whole

    def logits(self, hidden: Tensor, *, exact: bool = True) -> Tensor:
        """hidden: [M, H], chosen rows only -> [M, V] float32, or x's dtype if not `exact`."""
        config, tensors = self.config, self.tensors
        scaled = config.logits_divisor != 1.0 or config.final_softcap is not None
        logits = self.ops.logits(
            hidden, tensors.final_norm, config.norm_eps, tensors.lm_head, exact=exact or scaled
        )
        if logits.shape[1] < self.vocab_size:
            logits = self._ranks.all_gather(logits)
        if not exact and not scaled:
            return logits
        logits = logits.float()
        if config.logits_divisor != 1.0:
            logits = logits.div_(config.logits_divisor)
        if config.final_softcap is not None:
            logits = logits.div_(config.final_softcap).tanh_().mul_(config.final_softcap)
        return logits

    def _layer(
        self, layer: DecoderLayer, branch: Tensor | None, residual: Tensor, ctx: ForwardContext
    ) -> tuple[Tensor, Tensor]:
        """Run a layer; `branch` is the sum's last term, still to be added to `residual`."""
        ops, config = self.ops, self.config
        x, residual = self._enter(branch, residual, layer.pre_attention_norm)
        x = ops.attend(x, layer, config.norm_eps, ctx)
        x = self._ranks.all_reduce(layer.o.product.multiply(x))
        x = self._leave(x, layer.post_attention_norm)
        x, residual = self._enter(x, residual, layer.pre_mlp_norm)
        x = self._ranks.all_reduce(layer.mlp.run(x, config.activation))
        return self._leave(x, layer.post_mlp_norm), residual

    def _enter(
        self, branch: Tensor | None, residual: Tensor, norm: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Add the pending branch and normalise for the next one: (normed, residual)."""
        eps = self.config.norm_eps
        if branch is None:
            return (residual if norm is None else self.ops.rms_norm(residual, norm, eps)), residual
        if norm is None:
            residual = residual.float() + branch
            return residual.to(branch.dtype), residual
        return self.ops.add_rms_norm(branch, residual, norm, eps)

    def _leave(self, x: Tensor, norm: Tensor | None) -> Tensor:
        """Finish a branch: its own norm, then the residual scale."""
        if norm is not None:
            x = self.ops.rms_norm(x, norm, self.config.norm_eps)
        return x if self.config.residual_scale == 1.0 else x * self.config.residual_scale


def few_layers(model: PagedModel) -> AbstractContextManager[None]:
    """Take passes through few layers inside, if a model has layers of its own, for their kernels.

    They load and compile what all layers would, in a tenth of the launches of a model of 32.
    """
    return model.abridged() if isinstance(model, Decoder) else nullcontext()
