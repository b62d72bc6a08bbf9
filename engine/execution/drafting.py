"""Drafting: who is asked for drafts between two steps, and what comes of them."""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from tokenbus.engine.scheduling.sequence import SequenceState
from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.types import FaultCode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.containment import Containment
    from tokenbus.engine.execution.constrained import ConstrainedRows
    from tokenbus.engine.execution.pending_step import DrawnTokens
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.speculation.drafter import Speculation


class _Drafted:
    """A sequence that drafters know, and how many of its tokens they have heard of."""

    def __init__(self, view: DraftView, num_heard: int) -> None:
        self.view = view
        self.num_heard = num_heard


class Drafting:
    """Asks for the drafts of running sequences, and tells what was right."""

    def __init__(
        self,
        speculation: Speculation,
        constrained: ConstrainedRows,
        containment: Containment[Sequence],
    ) -> None:
        self.drafted_tokens_total = 0
        self.right_tokens_total = 0
        self._speculation = speculation
        self._constrained = constrained
        self._containment = containment
        self._keys = count()
        self._known: dict[Sequence, _Drafted] = {}

    def drafts(self, running: Iterable[Sequence]) -> dict[Sequence, list[int]]:
        """Return the drafts of the next step for those of these sequences that have any."""
        asked = {self._hear(seq).key: seq for seq in running if _can_ask(seq)}
        views = [self._known[seq].view for seq in asked.values()]
        drafts: dict[Sequence, list[int]] = {}
        for key, draft in self._speculation.plan(views).items() if views else ():
            seq = asked[key]
            if seq.grammar is None:
                drafts[seq] = list(draft)
            else:
                with self._containment.guard(seq, "its draft was read", FaultCode.GRAMMAR):
                    drafts[seq] = self._constrained.admit_draft(seq, draft)
        return {seq: draft for seq, draft in drafts.items() if draft}

    def report(self, drawn: DrawnTokens) -> None:
        """Tell how much of a draft was right."""
        num_right = len(drawn.token_ids) - 1
        self.drafted_tokens_total += len(drawn.draft)
        self.right_tokens_total += num_right
        if (known := self._known.get(drawn.seq)) is not None:
            self._speculation.report(known.view.key, drawn.draft, num_right)

    def drop(self, seq: Sequence) -> None:
        """Tell the last tokens of a sequence, and that it has ended."""
        if seq in self._known:
            key = self._hear(seq).key
            del self._known[seq]
            self._speculation.drop(key)

    def _hear(self, seq: Sequence) -> DraftView:
        """Tell the tokens that a sequence has got since it was told of last."""
        known = self._known.get(seq)
        if known is None:
            known = self._known[seq] = _Drafted(self._view(seq), seq.num_prompt)
        fresh = seq.token_ids[known.num_heard :]
        if fresh:
            known.num_heard += len(fresh)
            self._speculation.observe(known.view.key, fresh)
        return known.view

    def _view(self, seq: Sequence) -> DraftView:
        return DraftView(
            key=next(self._keys),
            group=seq.request.cache_salt,
            token_ids=seq.token_ids,
            num_prompt=seq.num_prompt,
            walk_grammar=None if seq.grammar is None else partial(self._constrained.walk, seq),
        )


def _can_ask(seq: Sequence) -> bool:
    """Tell whether the next step may hold a draft of a sequence, or hold it back for one."""
    if seq.state is not SequenceState.RUNNING or not seq.num_output or seq.is_refilling:
        return False
    if seq.grammar is not None and (seq.num_inflight or seq.awaits_grammar):
        return False
    return not seq.draft and seq.held_end is None
