"""The runner carries out a plan on the device: forward passes, sampling, read-back.

The file is one noun, past three hundred lines: what a launch leaves is read back here.
"""

from __future__ import annotations

import time
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tokenbus.engine.containment import Containment
from tokenbus.engine.execution.batch import decode_batch, step_batch
from tokenbus.engine.execution.device_faults import escapes
from tokenbus.engine.execution.draft_walk import MASK_WAIT_S
from tokenbus.engine.execution.pending_step import PendingStep, read_step
from tokenbus.engine.interfaces import ForwardContext
from tokenbus.engine.parallel.group import ALONE, RankGroup
from tokenbus.engine.sampling.bitmask import distinct_masks, leaves_one
from tokenbus.engine.sampling.drafted_draws import NO_TOKEN, DraftedRow, DrawnRows, draw_drafted
from tokenbus.engine.sampling.logprobs import SCORED_ROWS
from tokenbus.engine.sampling.sampler import SampledTokens
from tokenbus.engine.scheduling.prefix_grouping import BatchGrouping
from tokenbus.kernels.draw_outcomes import BROKEN_ROW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from tokenbus.engine.execution.draft_walk import DraftMasks
    from tokenbus.engine.execution.pending_step import StepResult
    from tokenbus.engine.execution.rows import RowState
    from tokenbus.engine.interfaces import PagedModel
    from tokenbus.engine.kv_cache import KVCache
    from tokenbus.engine.sampling.logprobs import RawLogprobs
    from tokenbus.engine.sampling.plan import SamplingPlan
    from tokenbus.engine.sampling.sampler import SamplingState
    from tokenbus.engine.scheduling.plan import PrefillChunk, StepPlan
    from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing
    from tokenbus.engine.scheduling.sequence import Sequence

    # The packed grammar mask of each constrained row; of one with a draft, those of its draws.
    Masks = Mapping[int, Tensor]
    MasksOfDrafts = Mapping[int, DraftMasks]


class Runner:
    """Runs plans eagerly, on any device; the reference for faster runners.

    With an attention that shares runs of pages, prompts and decoding rows go through the model in
    one pass, so that the weights are read once. What is raised on behalf of one sequence goes to
    `containment`; the sequence stays in the step, and what it samples there counts for nothing.
    """

    def __init__(
        self,
        model: PagedModel,
        kv: KVCache,
        sampling: SamplingState,
        rows: RowState,
        *,
        sharing: PrefixSharing | None = None,
        group: RankGroup = ALONE,
    ) -> None:
        self.model = model
        self.kv = kv
        self.sampling = sampling
        self.rows = rows
        self.group = group
        self.containment: Containment[Sequence] = Containment(escapes)
        self._sharing = sharing
        self._grouping = None if sharing is None else BatchGrouping(kv.page_size, sharing.pays)

    def close(self) -> None:
        """End the other ranks."""
        self.group.close()

    def release(self, row: int) -> None:
        """Take a row back from a sequence that ended or was preempted."""
        self.rows.release(row)
        self.sampling.clear_row(row)
        self.group.release(row)

    @torch.inference_mode()
    def launch(
        self,
        plan: StepPlan,
        masks: Masks | None = None,
        draft_masks: MasksOfDrafts | None = None,
    ) -> PendingStep:
        """Start a step, under the masks of its constrained rows."""
        pending = PendingStep.of(plan)
        self._set_up(plan)
        asked = self.sampling.plan(_rows_of([*pending.seqs, *_owners(pending.drafted)]))
        with self.group.step(plan, asked):
            self._regroup(plan)
            hidden = self._hidden(plan, pending)
            # Outside of guards: the model is asked as often on every rank.
            first = len(pending.seqs)
            if pending.seqs:
                self._sample(self._logits(hidden[:first], asked), pending, masks)
            if pending.drafted:
                logits = self._logits(hidden[first:], asked)
                drawn = self._draw_drafted(logits, pending, draft_masks or {})
            self._read_back(pending)
            if pending.drafted:
                # Behind the copy to the host: the next step waits for that, not for this.
                rows = self.rows.to_device(_rows_of(_owners(pending.drafted)))
                self._enter(rows, [newest() for newest in drawn])
        return pending

    def collect(self, pending: PendingStep) -> StepResult:
        """Wait for a step and bring its tokens to the host."""
        if pending.ready is not None:
            self.group.wait(pending.ready)
        return read_step(pending, self.containment)

    @torch.inference_mode()
    def model_is_sound(self) -> bool:
        """Tell whether one token, on scratch, still gets finite logits from the model."""
        with self.group.probe():
            return self._is_sound()

    def _is_sound(self) -> bool:
        scratch = self.rows.to_device([0])
        one = self.rows.to_device([1], torch.int32)
        hidden = self.model.forward(
            scratch,
            ForwardContext(
                kv=self.kv,
                positions=scratch,
                slot_mapping=scratch,
                block_table=self.rows.block_table[self.rows.padding_row :, :1],
                context_lens=one,
                cu_seqlens_q=self.rows.to_device([0, 1], torch.int32),
                query_lens=[1],
                context_lens_host=[1],
            ),
        )
        return bool(self.model.logits(hidden).isfinite().any())

    def _set_up(self, plan: StepPlan) -> None:
        for chunk in plan.prefill:
            seq = chunk.seq
            # A grammar's forced tokens came in behind the sampler's back: it is told all again.
            if not self.rows.owns(seq) or seq.matcher is not None:
                assert seq.row is not None
                if not self.rows.owns(seq):
                    self.rows.assign(seq)
                self._set_row(seq, seq.row)
        self.rows.send([*(chunk.seq for chunk in plan.prefill), *plan.decode])

    def _set_row(self, seq: Sequence, row: int) -> None:
        with self.containment.guard(seq, "its sampling was set up"):
            self.sampling.set_row(
                row,
                seq.request.params,
                seq.choice,
                seq.token_ids[: seq.num_prompt],
                seq.token_ids[seq.num_prompt :],
            )
            return
        # Half of its rules must not be left.
        self.sampling.clear_row(row)

    def _regroup(self, plan: StepPlan) -> None:
        """Let the pass read the runs that its decoding rows share."""
        if self._sharing is not None and self._grouping is not None:
            answers = self._split_answers(plan.prefill)
            self._sharing.assign_runs(self._grouping.runs_of(plan.decode, answers))

    def _split_answers(self, chunks: list[PrefillChunk]) -> list[PrefillChunk]:
        """Return those of the chunks, the last ones, whose tokens decode in a row each."""
        if self._sharing is None or not self._sharing.splits_answers:
            return []
        return [chunk for chunk in chunks if chunk.is_answer]

    def _hidden(self, plan: StepPlan, pending: PendingStep) -> Tensor:
        """Return the hidden states that draws are made from, [S, H]: those of drafts come last."""
        if not plan.prefill:
            return self._decode(plan.decode)
        if self._sharing is not None:
            return self._prefill(plan.prefill, plan.decode, pending)
        hidden = self._prefill(plan.prefill, [], pending)
        if not plan.decode:
            return hidden
        place = len(pending.seqs) - len(plan.decode)
        return torch.cat((hidden[:place], self._decode(plan.decode), hidden[place:]))

    def _prefill(
        self, chunks: list[PrefillChunk], seqs: list[Sequence], pending: PendingStep
    ) -> Tensor:
        """Return the last hidden states of the chunks that sample, those of `seqs`, then of drafts.

        A chunk with a draft has one behind its last known token, and one behind each of the draft.
        """
        hidden, first_row = self._pass(chunks, seqs)
        offset = 0
        last: list[int] = []
        drafted: list[int] = []
        for chunk in chunks:
            if chunk.seq.num_prompt_scored < chunk.seq.num_prompt:
                with self.containment.guard(chunk.seq, "its prompt was scored"):
                    self._score_prompt(chunk, hidden[offset:], pending)
            if chunk.seq.num_unscored:
                with self.containment.guard(chunk.seq, "its forced tokens were scored"):
                    self._score_forced(chunk, hidden[offset:], pending)
            offset += chunk.num_tokens
            if chunk.draft:
                drafted.extend(range(offset - len(chunk.draft) - 1, offset))
            elif chunk.samples:
                last.append(offset - 1)
        last.extend(range(first_row, first_row + len(seqs)))
        wanted = [*last, *drafted]
        if wanted == list(range(len(wanted))):
            return hidden[: len(wanted)]
        return hidden[self.rows.to_device(wanted)]

    def _pass(self, chunks: list[PrefillChunk], seqs: list[Sequence]) -> tuple[Tensor, int]:
        """Take chunks, and one token each of `seqs` behind them, through the model.

        Returns: hidden states [T, H] and where the rows of `seqs` begin in them.
        """
        answers = self._split_answers(chunks)
        prompts = chunks[: len(chunks) - len(answers)]
        token_ids, ctx = step_batch(prompts, answers, seqs, self.rows, self.kv)
        return self.model.forward(token_ids, ctx), len(token_ids) - len(seqs)

    def _decode(self, seqs: list[Sequence]) -> Tensor:
        token_ids, _, ctx = decode_batch(seqs, self.rows, self.kv)
        return self.model.forward(token_ids, ctx)

    def _score_prompt(self, chunk: PrefillChunk, hidden: Tensor, pending: PendingStep) -> None:
        seq = chunk.seq
        start = max(chunk.start + 1, seq.num_prompt_scored)
        end = min(chunk.end + 1, seq.num_prompt)
        num_top = seq.request.params.prompt_logprobs or 0
        hidden = hidden[start - 1 - chunk.start :]
        for first, scores in self._scores(seq, start, end, hidden, num_top):
            pending.prompt_scores.append((seq, first, scores))

    def _score_forced(self, chunk: PrefillChunk, hidden: Tensor, pending: PendingStep) -> None:
        seq = chunk.seq
        start = max(chunk.start + 1, seq.num_scored)
        end = min(chunk.end + 1, len(seq.token_ids))
        num_top = seq.request.params.logprobs or 0
        hidden = hidden[start - 1 - chunk.start :]
        for first, scores in self._scores(seq, start, end, hidden, num_top):
            pending.forced_scores.append((seq, first, scores))

    def _scores(
        self, seq: Sequence, start: int, end: int, hidden: Tensor, num_top: int
    ) -> Iterator[tuple[int, RawLogprobs]]:
        """Score the known tokens [start, end); `hidden` begins at the token before the first."""
        for first in range(start, end, SCORED_ROWS):
            stop = min(first + SCORED_ROWS, end)
            # Guarded by itself, so that the model is asked as often on every rank.
            with self.containment.guard(seq, "its tokens were scored"):
                logits = self.model.logits(hidden[first - start : stop - start])
                targets = self.rows.to_device(list(seq.token_ids[first:stop]))
                yield first, self.sampling.score(logits, targets, num_top)

    def _sample(self, logits: Tensor, pending: PendingStep, masks: Masks | None) -> None:
        seqs = pending.seqs
        row_list = _rows_of(seqs)
        positions = [seq.num_computed - seq.num_prompt for seq in seqs]
        rows, drawn_at = self.rows.to_device([*row_list, *positions]).view(2, -1)

        def draw(part: slice) -> SampledTokens:
            return self.sampling.sample(
                logits[part],
                rows[part],
                drawn_at[part],
                plan=self.sampling.plan(row_list[part]),
                bitmask=self._bitmask([masks.get(row) for row in row_list[part]])
                if masks
                else None,
            )

        for part, sampled in self.containment.split(seqs, draw, "its token was drawn"):
            if sampled is not None:
                pending.draws.append(sampled)
            else:
                pending.draws.append(self._no_tokens(len(seqs[part])))
        self._enter(rows, [drawn.token_ids for drawn in pending.draws])

    def _draw_drafted(
        self, logits: Tensor, pending: PendingStep, masks: MasksOfDrafts
    ) -> list[Callable[[], Tensor]]:
        """Draw behind drafts; return what tells of parts of them the last token that counts."""
        chunks = pending.drafted
        found = _taken(masks)
        drafted = [
            DraftedRow(
                chunk.seq.row or 0, chunk.end - chunk.seq.num_prompt, _counting(chunk, found)
            )
            for chunk in chunks
        ]
        borders = [0, *accumulate(1 + len(item.draft) for item in drafted)]
        row_list = [item.row for item in drafted]
        newest: list[Callable[[], Tensor]] = []

        def draw(part: slice) -> DrawnRows:
            return draw_drafted(
                self.sampling,
                logits[borders[part.start] : borders[part.stop]],
                drafted[part],
                self.sampling.plan(row_list[part]),
                self.rows.to_device,
                self._bitmask([mask for chunk in chunks[part] for mask in _masks_of(chunk, found)]),
            )

        owners = _owners(chunks)
        for part, drawn in self.containment.split(owners, draw, "its draft was checked"):
            if drawn is not None:
                pending.drafted_draws.append(drawn.sampled)
                newest.append(drawn.newest)
            else:
                num_places = borders[part.stop] - borders[part.start]
                pending.drafted_draws.append(self._no_tokens(num_places))
                # What raised is one sequence's alone.
                newest.append(lambda: self._no_tokens(1).token_ids)
        return newest

    def _no_tokens(self, num: int) -> SampledTokens:
        """Return what stands in the place of tokens that could not be drawn."""
        return SampledTokens(self.rows.to_device([BROKEN_ROW] * num), None)

    def _enter(self, rows: Tensor, parts: list[Tensor]) -> None:
        """Make what was drawn for rows, on rank 0, the input of their next step on all ranks."""
        drawn = torch.cat(parts) if len(parts) > 1 else parts[0]
        self._keep(rows, self.group.collective.broadcast(drawn))

    def _keep(self, rows: Tensor, drawn: Tensor) -> None:
        """Write what was drawn for rows where their next step looks for it, 0 where nothing was."""
        self.rows.last_token.index_copy_(0, rows, drawn.clamp(min=0))

    def _logits(self, hidden: Tensor, plan: SamplingPlan) -> Tensor:  # noqa: ARG002
        """Return the logits that `plan` needs, [S, V]."""
        return self.model.logits(hidden)

    def _read_back(self, pending: PendingStep) -> None:
        """Start the copy of what was drawn or forced to the host; `collect` waits for it."""
        if self.rows.device.type == "cuda":
            pending.leave()

    def _bitmask(self, masks: list[Tensor | None]) -> Tensor | None:
        """Return the masks of draws, [M, W] int32; those of free ones have all ones."""
        found, places = distinct_masks(masks)
        if not found:
            return None
        if len(found) == len(masks):
            return self.rows.to_device(torch.stack(found), torch.int32)
        all_ones = torch.full_like(found[0], -1)
        sent = self.rows.to_device(torch.stack([all_ones, *found]), torch.int32)
        return sent[self.rows.to_device(places)]


def _taken(masks: MasksOfDrafts) -> dict[int, list[Tensor]]:
    """Wait a little for the masks of all drafts, and take of each row those that there are."""
    ends_at = time.monotonic() + MASK_WAIT_S
    return {row: made.take(ends_at - time.monotonic()) for row, made in masks.items()}


def _counting(chunk: PrefillChunk, masks: Mapping[int, list[Tensor]]) -> list[int]:
    """Return a draft of which no token is right that would lead past the last mask."""
    found = masks.get(-1 if chunk.seq.row is None else chunk.seq.row)
    num = len(chunk.draft) if found is None else len(found) - 1
    return [*chunk.draft[:num], *[NO_TOKEN] * (len(chunk.draft) - num)]


def _masks_of(chunk: PrefillChunk, masks: Mapping[int, list[Tensor]]) -> list[Tensor | None]:
    """Return the masks of a draft's draws, and note how many of these count."""
    num_draws = 1 + len(chunk.draft)
    seq = chunk.seq
    found = masks.get(-1 if seq.row is None else seq.row)
    if found is None:
        return [None] * num_draws
    seq.draws_forced = tuple(map(leaves_one, found))
    # What is drawn behind the last that counts is dropped, whatever it is.
    return [*found, *found[-1:] * (num_draws - len(found))]


def _owners(chunks: list[PrefillChunk]) -> list[Sequence]:
    return [chunk.seq for chunk in chunks]


def _rows_of(seqs: list[Sequence]) -> list[int]:
    return [seq.row for seq in seqs if seq.row is not None]
