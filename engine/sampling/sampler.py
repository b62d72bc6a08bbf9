"""The sampler: device-side state of rows, and one function from logits to tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenbus.engine.sampling.bitmask import unpack, unpack_table
from tokenbus.engine.sampling.filters import filtered_weights
from tokenbus.engine.sampling.logprobs import RawLogprobs, raw_logprobs
from tokenbus.engine.sampling.plan import (
    HISTORY,
    LOGIT_RULES,
    Feature,
    SamplingPlan,
    plan_of,
)
from tokenbus.engine.sampling.random_draw import draw, uniforms
from tokenbus.engine.sampling.row_table import RowTable
from tokenbus.engine.sampling.torch_rules import TorchRules
from tokenbus.engine.types import SamplingParams
from tokenbus.kernels.draw_outcomes import BROKEN_ROW, EMPTY_ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.engine.sampling.fused_sampler import FusedSampler

_NEUTRAL = SamplingParams(temperature=0.0)
# Rules that lie in tables of their own: a row keeps them there until others are written.
_TABLED = Feature.BIAS | Feature.BAD_WORDS


@dataclass(frozen=True, slots=True)
class SampledTokens:
    """What one call drew, on the device of the logits.

    token_ids: [M] int64; `BROKEN_ROW` where the logits of a row are not finite, `EMPTY_ROW` where
    its rules left no token at all. The choice of such a row has to fail.
    logprobs: for every row, if any row of the batch wants them.
    """

    token_ids: Tensor
    logprobs: RawLogprobs | None

    def inputs(self) -> Tensor:
        """Return what a next step may read, [M] int64: an id of the vocabulary for every row."""
        return self.token_ids.clamp(min=0)

    def leave(self) -> SampledTokens:
        """Start to copy all of it to the host, as many rows as there are token ids."""
        num = len(self.token_ids)
        return SampledTokens(
            self.token_ids.to("cpu", non_blocking=True),
            None if self.logprobs is None else self.logprobs.leave(num),
        )


class SamplingState:
    """The sampling state of every row, in static tensors.

    A sequence owns a row from `set_row` to `clear_row`; choices of one job are rows of their own.
    Row `padding_row` is greedy for ever and is for the padded entries of a batch.

    Order of a step: logits -> repetition, presence and frequency penalties -> logit bias -> bad
    words -> min_tokens -> grammar mask -> temperature -> top-k -> top-p -> min-p -> draw. Drawn
    tokens enter the row's counts on the device, so that the next step can be launched at once.
    """

    def __init__(
        self,
        max_rows: int,
        vocab_size: int,
        device: torch.device | str,
        eos_token_ids: Sequence[int] = (),
        *,
        fused: bool | None = None,
    ) -> None:
        """Allocate the scalars; the tables of rules come with first use.

        `fused`: by the kernels, as by default on a GPU alone.
        """
        self.max_rows = max_rows
        self.vocab_size = vocab_size
        self.padding_row = max_rows
        self._device = torch.device(device)
        self._plans = [SamplingPlan()] * (max_rows + 1)
        # Equal plans are few: rows have numbers of them, for a batch is looked through every step.
        self._known_plans = {SamplingPlan(): 0}
        self._plan_numbers = [0] * (max_rows + 1)
        self._table = RowTable(max_rows, eos_token_ids, self._device)
        self._rules = TorchRules(self._table, max_rows + 1, vocab_size, self._device)
        self._fused: FusedSampler | None = None
        if self._device.type == "cuda" if fused is None else fused:
            # Imported on use: without a GPU, Triton may be missing.
            from tokenbus.engine.sampling.fused_sampler import FusedSampler

            self._fused = FusedSampler(self._table, max_rows, vocab_size, self._device)
        self._unpack_table = unpack_table(self._device)

    def set_row(
        self,
        row: int,
        params: SamplingParams,
        choice: int,
        prompt_ids: Sequence[int],
        output_ids: Sequence[int] = (),
    ) -> None:
        """Give a row to a choice; `output_ids` are tokens it already has (resume, preemption).

        The parameters have passed `validate_sampling`.
        """
        plan, previous = plan_of(params), self._plans[row]
        self._plans[row] = plan
        self._plan_numbers[row] = self._known_plans.setdefault(plan, len(self._known_plans))
        self._table.write(row, params, choice)
        if self._fused is not None:
            self._fused.write(row, params, plan, prompt_ids, output_ids)
        else:
            self._rules.write(row, params, plan, previous, prompt_ids, output_ids)

    def clear_row(self, row: int) -> None:
        """Make a row neutral: what it held is asked for by no plan any more.

        Its scalars stay until the next owner's take their place; rows end as often as they begin.
        """
        if self._fused is None and self._plans[row].has(_TABLED):
            self._neutralise(row)
        else:
            self._plans[row] = SamplingPlan()
            self._plan_numbers[row] = 0

    @torch.inference_mode()
    def _neutralise(self, row: int) -> None:
        self.set_row(row, _NEUTRAL, 0, ())

    def plan(self, rows: Sequence[int]) -> SamplingPlan:
        """Return what a batch of these rows needs: the key of the graph that serves it."""
        plans = list(self._known_plans)
        first, *others = set(map(self._plan_numbers.__getitem__, rows)) or {0}
        merged = plans[first]
        for number in others:
            merged = merged.union(plans[number])
        return merged

    def reads_history(self, plan: SamplingPlan) -> bool:
        """Tell whether a draw by `plan` depends on the tokens drawn before it."""
        return plan.has(HISTORY)

    def flush(self) -> None:
        """Send staged rows to the device; call before replaying a captured `sample_with_plan`."""
        self._table.flush()
        if self._fused is not None:
            self._fused.flush()

    def sample(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        *,
        plan: SamplingPlan | None = None,
        bitmask: Tensor | None = None,
    ) -> SampledTokens:
        """Draw one token per row and enter it into the row's state.

        Args:
            logits: [M, V], not written; float32, or on a GPU any dtype if nobody asks for logprobs.
            rows: [M] int64, distinct except for `padding_row`.
            positions: [M] int64, index of the token in its choice's output, from 0.
            plan: from `plan(rows)`; without it every row that is set counts, on a CPU those given.
            bitmask: [M, ceil(V / 32)] int32, bit = token allowed; all ones for free rows.
        """
        if plan is None:
            on_cpu = self._device.type == "cpu"
            plan = self.plan(rows.tolist() if on_cpu else range(self.max_rows))
        self.flush()
        return self.sample_with_plan(logits, rows, positions, plan, bitmask)

    def sample_with_plan(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        plan: SamplingPlan,
        bitmask: Tensor | None = None,
    ) -> SampledTokens:
        """Run `sample` without touching the host, so that a CUDA graph can hold it."""
        token_ids = self._draw(logits, rows, positions, plan, bitmask)
        sampled = SampledTokens(token_ids, None)
        if plan.has(Feature.LOGPROBS):
            scores = self.score(logits, sampled.inputs(), plan.num_top_logprobs)
            sampled = SampledTokens(token_ids, scores)
        # Last, so that a batch that fails before has changed no row.
        if plan.has(HISTORY):
            self.record(rows, sampled.inputs(), plan)
        return sampled

    def score(self, logits: Tensor, token_ids: Tensor, num_top: int) -> RawLogprobs:
        """Score given tokens under the raw distribution, up to `SCORED_ROWS` of them.

        Args:
            logits: [M, V] float32; token_ids: [M] int64; num_top: alternatives per position.
        """
        if self._fused is not None:
            return self._fused.score(logits, token_ids, num_top)
        return raw_logprobs(logits, token_ids, num_top)

    def prepare_rules(self) -> bool:
        """Give the kernels' tables of rules their memory, if it is little of the device's.

        Tell whether they have it, so that steps with rules may be captured.
        """
        return self._fused is not None and self._fused.prepare_rules()

    def allocate_rules(self) -> None:
        """Give the tables of rules their memory, if they have none, before masks are captured."""
        if self._fused is not None:
            self._fused.allocate_rules()

    def rehearse(self, logits_of: Callable[[bool], Tensor]) -> None:
        """Launch every kernel once, so that no rule has to wait for one when it is first asked for.

        `logits_of` returns the logits of one row, [1, V], exact or not.
        """
        if self._fused is not None:
            self._fused.rehearse(logits_of, self.padding_row)

    def record(self, rows: Tensor, token_ids: Tensor, plan: SamplingPlan) -> None:
        """Enter one token per row that did not come from `sample`, such as a forced one.

        rows, token_ids: [M] int64, rows distinct; several tokens of a row are several calls.
        """
        if self._fused is not None:
            self._fused.record(rows, token_ids)
        else:
            self._rules.record(rows, token_ids, plan)

    def adjusted_logits(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        plan: SamplingPlan,
        bitmask: Tensor | None = None,
    ) -> Tensor:
        """Return logits with penalties, biases and masks; the input itself if there are none.

        Arguments are those of `sample`.
        """
        if self._fused is not None:
            if not plan.has(LOGIT_RULES) and bitmask is None:
                return logits
            return self._fused.adjusted(logits, rows, positions, bitmask)
        allowed = logits
        if plan.has(LOGIT_RULES):
            allowed = logits.clone()
            self._rules.apply_(allowed, rows, positions, plan)
        if bitmask is not None:
            mask = unpack(bitmask, self.vocab_size, self._unpack_table)
            allowed = torch.where(mask, allowed, float("-inf"))
        return allowed

    def _draw(
        self,
        logits: Tensor,
        rows: Tensor,
        positions: Tensor,
        plan: SamplingPlan,
        bitmask: Tensor | None,
    ) -> Tensor:
        if self._fused is not None:
            return self._fused.draw(logits, rows, positions, plan, bitmask)
        allowed = self.adjusted_logits(logits, rows, positions, plan, bitmask)
        token_ids = best = allowed.argmax(-1)
        if plan.has(Feature.RANDOM):
            scalars = self._table.gather(rows)
            weights = filtered_weights(allowed, scalars, plan)
            drawn = draw(weights, uniforms(scalars.key, scalars.increment, positions))
            token_ids = torch.where(scalars.is_random.bool(), drawn, best)
        return _with_outcomes(token_ids, allowed.gather(-1, best.unsqueeze(-1)))


def _with_outcomes(token_ids: Tensor, top: Tensor) -> Tensor:
    """Replace the tokens of rows that have none to draw.

    Args:
        token_ids: [M] int64; top: [M, 1], the highest logit of each row, NaN if it holds one.
    """
    top = top.squeeze(-1)
    token_ids = torch.where(top == float("-inf"), EMPTY_ROW, token_ids)
    return torch.where(top < float("inf"), token_ids, BROKEN_ROW)
