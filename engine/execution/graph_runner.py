"""Steps as CUDA graphs: decode steps from embedding to sampled token, one graph per batch bucket.

A replayed node costs the host 1 us instead of 7 to 12 for a launch. A graph reads which rows take
part from a small staging tensor; everything else it needs is device state of those rows, so one
graph serves all lengths and all members. Prompts and decoding rows go through the model in one
pass, so that the weights are read once: in a graph of `prompt_graphs` where that gains, launched
otherwise. Their logits and draws are launched. Grammar masks are rules like others: the graphs of
ruled draws read the masks of a step, sent ahead of it, and free rows beside masked ones read one
that allows everything.

The file is one noun, past three hundred lines: what the warm-up runs is what is captured later.
"""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import torch

from tokenbus.engine.execution.draft_graphs import DraftGraphs
from tokenbus.engine.execution.pending_step import PendingStep
from tokenbus.engine.execution.prompt_graphs import PromptGraphs
from tokenbus.engine.execution.runner import Runner
from tokenbus.engine.execution.step_masks import StepMasks
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.models.decoder import few_layers
from tokenbus.engine.parallel.group import ALONE, RankGroup
from tokenbus.engine.sampling.plan import FILTERS, LOGIT_RULES, Feature, SamplingPlan
from tokenbus.kernels.compile_ahead import compiling_ahead
from tokenbus.kernels.decode_inputs import decode_inputs, keep_tokens

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from tokenbus.engine.execution.prompt_graphs import PassShape
    from tokenbus.engine.execution.rows import RowState
    from tokenbus.engine.execution.runner import Masks, MasksOfDrafts
    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.sampling.sampler import SampledTokens, SamplingState
    from tokenbus.engine.scheduling.plan import PrefillChunk, StepPlan
    from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing
    from tokenbus.engine.scheduling.sequence import Sequence as DecodingSequence


_PLAIN = SamplingPlan(Feature.RANDOM)
# What most chats ask for, and all that a draw can be asked for, grammar masks included.
_FILTERED = SamplingPlan(Feature.RANDOM | FILTERS)
_RULED = SamplingPlan(Feature.RANDOM | FILTERS | LOGIT_RULES)
# Prompt tokens and decoding rows of a step: every layout that the linear layers choose by their
# number, and what libraries choose. The kernels of tokenbus are not compiled apart for numbers or
# addresses that vary with the batch: one that came late would hold everyone up for half a second.
_WARM_STEPS = (
    *((5, 0), (17, 1), (40, 2), (64, 3), (100, 16)),
    *((256, 0), (500, 0), (1024, 0), (2048, 0), (4096, 0)),
)
# Tokens of the scratch prompt whose logits the rehearsal of draws reads.
_REHEARSED_TOKENS = 5
# Lone prompts of up to so many tokens find their graph captured; of other passes as many as these
# seconds of the start allow, 15 to 30 ms each. The rest pay for it on first use.
_PREPARED_TOKENS = 256
_CAPTURE_S = 3.0


@dataclass(frozen=True, slots=True)
class _CapturedPass:
    """A pass of decoding rows: what is replayed leaves `hidden` [T, H], rows draw at `drawn_at`."""

    graph: torch.cuda.CUDAGraph
    hidden: Tensor
    drawn_at: Tensor


@dataclass(frozen=True, slots=True)
class _CapturedStep:
    """A pass, which steps of all ways to draw share, and the draws behind it."""

    graphs: tuple[torch.cuda.CUDAGraph, ...]
    sampled: SampledTokens

    def replay(self) -> None:
        """Compute the step; the draws are launched while the pass runs."""
        for graph in self.graphs:
            graph.replay()


def buckets(max_num_seqs: int) -> list[int]:
    """Batch sizes that get a graph: powers of two, from 16 in steps of 16, from 256 of 32."""
    sizes = [size for size in (1, 2, 4, 8) if size < max_num_seqs]
    sizes += range(16, min(max_num_seqs, 256), 16)
    sizes += range(256, max_num_seqs, 32)
    return [*sizes, max_num_seqs]


def warm_steps(max_tokens: int, *, max_num_seqs: int) -> list[tuple[int, int]]:
    """Steps that the warm-up takes: tokens of one prompt, and rows that decode beside it.

    The prompt's own sequence is one of `max_num_seqs`.
    """
    return [
        (num_tokens, min(num_rows, max_num_seqs - 1))
        for num_tokens, num_rows in _WARM_STEPS
        if num_tokens <= max_tokens
    ]


def _captured_plan(plan: SamplingPlan) -> SamplingPlan:
    """Return a plan that does what `plan` asks, one of few, so that few graphs serve all.

    One pass applies all rules, and the draw behind it all filters, each row's by its own numbers;
    greedy rows ride in the graph of sampled ones, which knows them by a flag of the row.
    """
    features = plan.features | Feature.RANDOM
    if plan.has(LOGIT_RULES):
        features |= LOGIT_RULES | FILTERS
    elif plan.has(FILTERS):
        features |= FILTERS
    num_top = plan.num_top_logprobs
    return SamplingPlan(features, 1 << (num_top - 1).bit_length() if num_top else 0)


def _needs_exact(plan: SamplingPlan) -> bool:
    """Tell whether logits have to be unrounded: log-probabilities are told as they are."""
    return plan.has(Feature.LOGPROBS)


class GraphRunner(Runner):
    """A runner that replays its decode steps."""

    def __init__(
        self,
        model: PagedModel,
        kv: KVCache,
        sampling: SamplingState,
        rows: RowState,
        *,
        sharing: PrefixSharing | None = None,
        group: RankGroup = ALONE,
        max_batch_tokens: int,
        has_drafts: bool = False,
    ) -> None:
        """Serve steps of up to so many prompt tokens, and of drafts where there may be any."""
        super().__init__(model, kv, sampling, rows, sharing=sharing, group=group)
        self._max_tokens = rows.block_table.shape[1] * kv.page_size
        self._buckets = buckets(rows.padding_row)
        self._passes: dict[tuple[int, bool], _CapturedPass] = {}
        self._graphs: dict[tuple[int, SamplingPlan, bool], _CapturedStep] = {}
        self._is_warm = False
        self._capture_s = 0.0
        self._memory_pool = torch.cuda.graph_pool_handle()
        # Graphs share memory only if one stream captured them.
        self._capture_stream = torch.cuda.Stream()  # type: ignore[no-untyped-call] # none in torch
        self._prompts = PromptGraphs(
            model, kv, rows, max_batch_tokens, self._capture_pass, sharing=sharing
        )
        self._drafts = DraftGraphs(model, kv, rows, self._capture_parts, has_drafts=has_drafts)
        # Rows of the batch, their positions, and under rules the numbers of their masks: written
        # before each replay, in stream order.
        self._staged = torch.zeros(3 * self._buckets[-1], dtype=torch.int64, device=rows.device)
        self._masks = StepMasks(rows, model.vocab_size)
        # Block tables of the rows of a batch. What lies past their last pages is of earlier
        # batches, so that a kernel that looks ahead finds pages there, now held by any row.
        self._tables = torch.zeros_like(rows.block_table[: self._buckets[-1]])
        self._borders = torch.arange(self._buckets[-1] + 1, dtype=torch.int32, device=rows.device)

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Capture the graphs of plain, filtered and ruled draws, largest batch first.

        Those of log-probabilities and of shared runs come with first use, without a run, and those
        of rules where tables for them take much memory.

        Prompts of several sizes run once on scratch, some with decoding rows, so that the first
        real one does not wait for compilers and libraries either; those of short ones are captured.
        """
        steps = warm_steps(self._max_tokens, max_num_seqs=self.rows.padding_row)
        self._compile_ahead(steps)
        # What loading left free goes to the graphs.
        torch.cuda.empty_cache()
        parts: list[Callable[[], object]] = [
            *(partial(self._captured, size, _PLAIN) for size in reversed(self._buckets)),
            self._rehearse_draws,
            *(
                partial(self._capture_known, size, plan)
                for plan in ((_FILTERED, _RULED) if self.sampling.prepare_rules() else (_FILTERED,))
                for size in reversed(self._buckets)
            ),
            *(partial(self._warm_step, *step) for step in steps),
            *(partial(self._warm_step, *step, reads_cache=False) for step in steps[:1]),
            *(
                partial(self._prompts.prepare, shape)
                for shape in self._prompts.shapes_to_prepare(_PREPARED_TOKENS)
            ),
            *(partial(self._drafts.prepare, shape) for shape in self._drafts.shapes_to_prepare()),
            *(
                partial(self._capture_in_time, shape)
                for shape in self._prompts.other_shapes(_PREPARED_TOKENS)
            ),
        ]
        for done, warm in enumerate(parts, 1):
            warm()
            if progress is not None:
                progress(done, len(parts))
        torch.cuda.synchronize()
        self._is_warm = True

    @torch.inference_mode()
    def launch(
        self,
        plan: StepPlan,
        masks: Masks | None = None,
        draft_masks: MasksOfDrafts | None = None,
    ) -> PendingStep:
        """Start a step, by replay where a graph can hold it."""
        if plan.prefill:
            return super().launch(plan, masks, draft_masks)
        pending = PendingStep.of(plan)
        self._set_up(plan)
        row_list = [seq.row for seq in plan.decode if seq.row is not None]
        asked = self.sampling.plan(row_list)
        numbers = self._send_masks(plan.decode, masks or {})
        if any(numbers):
            asked = asked.union(_RULED)
        sampling_plan = _captured_plan(asked)
        with self.group.step(plan, sampling_plan):
            self._regroup(plan)
            pending.draws.append(self._replay(plan.decode, row_list, numbers, sampling_plan))
        self._read_back(pending)
        return pending

    def _send_masks(self, seqs: list[DecodingSequence], masks: Masks) -> list[int]:
        """Send masks to where a replay finds them, and return their numbers, 0 for free rows.

        A sequence whose mask cannot be sent has failed; it draws as a free one.
        """
        if not masks:
            return [0] * len(seqs)
        sent: list[Tensor | None] = [None] * len(seqs)
        for idx, seq in enumerate(seqs):
            mask = masks.get(-1 if seq.row is None else seq.row)
            if mask is not None:
                with self.containment.guard(seq, "its mask was sent"):
                    self._masks.require_fit(mask)
                    self.sampling.allocate_rules()
                    sent[idx] = mask
        return self._masks.send(sent)

    def _keep(self, rows: Tensor, drawn: Tensor) -> None:
        keep_tokens(self.rows.last_token, rows, drawn)

    def _logits(self, hidden: Tensor, plan: SamplingPlan) -> Tensor:
        return self.model.logits(hidden, exact=_needs_exact(plan))

    def _pass(self, chunks: list[PrefillChunk], seqs: list[DecodingSequence]) -> tuple[Tensor, int]:
        few = self._drafts.run(chunks, seqs)
        return few or self._prompts.run(chunks, seqs) or super()._pass(chunks, seqs)

    def _replay(
        self,
        seqs: list[DecodingSequence],
        row_list: list[int],
        mask_numbers: list[int],
        plan: SamplingPlan,
    ) -> SampledTokens:
        num = len(seqs)
        size = next(size for size in self._buckets if size >= num)
        step = self._captured(size, plan)
        padding = size - num
        staged = [
            *row_list,
            *[self.rows.padding_row] * padding,
            *(seq.num_computed - 1 for seq in seqs),
            *[-1] * padding,
        ]
        if plan.has(LOGIT_RULES):
            staged += [*mask_numbers, *[0] * padding]
        self.rows.copy_into(self._staged[: len(staged)], staged)
        self.sampling.flush()
        step.replay()
        return replace(step.sampled, token_ids=step.sampled.token_ids[:num])

    @torch.inference_mode()
    def _compile_ahead(self, steps: list[tuple[int, int]]) -> None:
        """Compile all kernels at once; the passes themselves compute nothing yet."""
        with compiling_ahead(), few_layers(self.model):
            # What takes the compiler longest is begun first, so that it does not keep the end
            # waiting: draws, attention of prompts, and of rows that share runs, which is compiled
            # apart by octaves of them.
            self._rehearse_draws()
            for step in steps[:1]:
                self._warm_step(*step, reads_cache=False)
            octaves = [size for size in self._buckets if size & (size - 1) == 0]
            with nullcontext() if self._sharing is None else self._sharing.assuming_runs():
                for size in {*octaves, self._buckets[-1]}:
                    self._decode_step(size, _PLAIN)
            for size in self._buckets:
                self._decode_step(size, _PLAIN)
            for step in steps:
                self._warm_step(*step)
            self._drafts.compile()
        # What was drawn is no token.
        self.rows.last_token.zero_()

    def _captured(self, size: int, plan: SamplingPlan) -> _CapturedStep:
        has_runs = self._sharing is not None and self._sharing.has_runs
        key = (size, plan, has_runs)
        if key not in self._graphs:
            # After the warm-up all kernels of any step are compiled and loaded.
            capture = self._capture_amid if self._is_warm else self._capture
            self._graphs[key] = capture(size, plan)
        return self._graphs[key]

    @torch.inference_mode()
    def _capture_known(self, size: int, plan: SamplingPlan) -> None:
        """Capture a step of the warm-up whose kernels are loaded already."""
        self._graphs[size, plan, False] = self._capture_amid(size, plan)

    @torch.inference_mode()
    def _capture(self, size: int, plan: SamplingPlan) -> _CapturedStep:
        """Run once on scratch rows, so that all kernels are loaded, then capture."""
        self._staged[:size].fill_(self.rows.padding_row)
        self._staged[size : 2 * size].fill_(-1)
        self._staged[2 * size : 3 * size].zero_()
        with few_layers(self.model):
            self._decode_step(size, plan)
        return self._capture_amid(size, plan)

    def _capture_amid(self, size: int, plan: SamplingPlan) -> _CapturedStep:
        step = self._captured_pass(size)
        sampled: list[SampledTokens] = []
        draws = self._recorded(
            lambda: sampled.append(self._draw(size, plan, step.hidden, step.drawn_at))
        )
        return _CapturedStep((step.graph, draws), sampled[0])

    def _captured_pass(self, size: int) -> _CapturedPass:
        has_runs = self._sharing is not None and self._sharing.has_runs
        key = (size, has_runs)
        if key not in self._passes:
            found: list[tuple[Tensor, Tensor]] = []
            graph = self._recorded(lambda: found.append(self._decode_pass(size)))
            self._passes[key] = _CapturedPass(graph, *found[0])
        return self._passes[key]

    @torch.inference_mode()
    def _capture_in_time(self, shape: PassShape) -> None:
        """Capture a pass of the start, unless too many have been before it."""
        started_at = time.monotonic()
        if self._capture_s < _CAPTURE_S:
            self._prompts.capture(shape)
            self._capture_s += time.monotonic() - started_at

    def _capture_pass(self, compute: Callable[[], None]) -> Callable[[], None]:
        return self._recorded(compute).replay

    def _capture_parts(self, compute: Callable[[Callable[[], None]], None]) -> Callable[[], None]:
        graphs = self._recorded_parts(compute)

        def replay() -> None:
            for graph in graphs:
                graph.replay()

        return replay

    def _recorded(self, compute: Callable[[], None]) -> torch.cuda.CUDAGraph:
        [graph] = self._recorded_parts(lambda _: compute())
        return graph

    def _recorded_parts(
        self, compute: Callable[[Callable[[], None]], None]
    ) -> list[torch.cuda.CUDAGraph]:
        """Capture amid serving: no run before, no wait for the device, no memory given back.

        Where `compute` calls its argument, another graph begins. All kernels are compiled; what
        libraries load for a new size, they may load meanwhile.
        """
        graphs: list[torch.cuda.CUDAGraph] = []

        def begin() -> None:
            graphs.append(self.group.collective.new_graph())
            graphs[-1].capture_begin(pool=self._memory_pool, capture_error_mode="relaxed")

        def cut() -> None:
            graphs[-1].capture_end()
            begin()

        with torch.cuda.stream(self._capture_stream):
            begin()
            try:
                compute(cut)
            finally:
                graphs[-1].capture_end()
        return graphs

    @torch.inference_mode()
    def _rehearse_draws(self) -> None:
        """Launch every kernel that rules, filters and log-probabilities may ask for, on scratch."""
        hidden = self._warm_pass(_REHEARSED_TOKENS, 0)
        self.sampling.rehearse(lambda exact: self.model.logits(hidden, exact=exact))

    @torch.inference_mode()
    def _warm_step(self, num_tokens: int, num_rows: int, *, reads_cache: bool = True) -> None:
        """Take one prompt and some rows through the model, and draw, all on scratch."""
        hidden = self._warm_pass(num_tokens, num_rows, reads_cache=reads_cache)
        row_ids = self.rows.to_device([self.rows.padding_row] * len(hidden))
        logits = self._logits(hidden, _PLAIN)
        self.sampling.sample(logits, row_ids, torch.zeros_like(row_ids), plan=_PLAIN)

    def _warm_pass(self, num_tokens: int, num_rows: int, *, reads_cache: bool = True) -> Tensor:
        """Return hidden states of one prompt's end and some decoding rows, all on scratch.

        They have gone through few layers.
        """
        rows, num_seqs = self.rows, num_rows + 1
        total = num_tokens + num_rows
        positions = torch.zeros(total, dtype=torch.int64, device=rows.device)
        positions[:num_tokens] = torch.arange(num_tokens, device=rows.device)
        lens = [num_tokens, *[1] * num_rows]
        row_ids = rows.to_device([rows.padding_row] * num_seqs)
        ctx = ForwardContext(
            kv=self.kv,
            positions=positions,
            slot_mapping=torch.zeros_like(positions),
            block_table=rows.block_table[row_ids],
            context_lens=rows.to_device(lens, torch.int32),
            cu_seqlens_q=rows.to_device([0, *range(num_tokens, total + 1)], torch.int32),
            query_lens=lens,
            context_lens_host=lens,
            num_decode=num_rows,
            reads_cache=reads_cache,
        )
        with few_layers(self.model):
            return self.model.forward(torch.zeros_like(positions), ctx)[-num_seqs:]

    def _decode_step(self, size: int, plan: SamplingPlan) -> SampledTokens:
        return self._draw(size, plan, *self._decode_pass(size))

    def _decode_pass(self, size: int) -> tuple[Tensor, Tensor]:
        """Return the last hidden states of the staged rows, and where each of them draws."""
        rows, positions, _ = self._staged[: 3 * size].view(3, size)
        inputs = decode_inputs(
            rows,
            positions,
            tables=self.rows.block_table,
            last_tokens=self.rows.last_token,
            num_prompts=self.rows.num_prompt,
            page_size=self.kv.page_size,
            block_table=self._tables[:size],
        )
        ctx = ForwardContext(
            kv=self.kv,
            positions=inputs.positions,
            slot_mapping=inputs.slots,
            block_table=inputs.block_table,
            context_lens=inputs.context_lens,
            cu_seqlens_q=self._borders[: size + 1],
            query_lens=[1] * size,
            context_lens_host=[1] * size,
            num_decode=size,
        )
        return self.model.forward(inputs.token_ids, ctx), inputs.drawn_at

    def _draw(
        self, size: int, plan: SamplingPlan, hidden: Tensor, drawn_at: Tensor
    ) -> SampledTokens:
        """Draw the next tokens of the staged rows and enter them."""
        rows, _, mask_numbers = self._staged[: 3 * size].view(3, size)
        logits = self._logits(hidden, plan)
        bitmask = self._masks.of(mask_numbers) if plan.has(LOGIT_RULES) else None
        sampled = self.sampling.sample_with_plan(logits, rows, drawn_at, plan, bitmask)
        self._enter(rows, [sampled.token_ids])
        return sampled
