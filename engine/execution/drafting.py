"""Drafting: who is asked for drafts between two steps, and what comes of them.

Tokens do not depend on it. So whatever the planner raises ends drafting, and nothing else.
"""

from __future__ import annotations

from functools import partial
from itertools import count
from typing import TYPE_CHECKING

from tokenbus.engine.containment import Containment
from tokenbus.engine.scheduling.sequence import SequenceState
from tokenbus.engine.speculation.drafter import DraftView
from tokenbus.engine.types import DraftCount

if TYPE_CHECKING:
    from collections.abc import Collection
    from collections.abc import Sequence as TokenIds

    from tokenbus.engine.containment import Guard
    from tokenbus.engine.execution.constrained import ConstrainedRows
    from tokenbus.engine.execution.pending_step import DrawnTokens
    from tokenbus.engine.scheduling.plan import StepPlan
    from tokenbus.engine.scheduling.scheduler import Drafts
    from tokenbus.engine.scheduling.sequence import Sequence
    from tokenbus.engine.speculation.drafter import Speculation


class Drafting:
    """Asks for the drafts of running sequences, and tells what was right.

    `decode_turns_total` counts the sequences of all decode steps.
    """

    def __init__(self, speculation: Speculation, constrained: ConstrainedRows) -> None:
        self.speculation = speculation
        self.decode_turns_total = 0
        self._constrained = constrained
        self._keys = count()
        self._views: dict[Sequence, DraftView] = {}
        self._counts: dict[Sequence, DraftCount] = {}
        self._containment: Containment[str] = Containment()
        self._has_failed = False

    def drafts(self, running: Collection[Sequence]) -> Drafts:
        """Return the drafts of the next step for those of these sequences that have any."""
        if not running or self._is_over:
            return {}
        with self._guard("drafts were planned"):
            if not self.speculation.pays(len(running)):
                return {}
            asked = {(view := self._view(seq)).key: (view, seq) for seq in running if _can_ask(seq)}
            if not asked:
                return {}
            drafts = self.speculation.plan([view for view, _ in asked.values()])
            return {asked[key][1]: draft for key, draft in drafts.items() if draft}
        return {}

    def report(self, drawn: DrawnTokens) -> None:
        """Tell how much of a draft was right, unless its sequence has ended meanwhile."""
        view = self._views.get(drawn.seq)
        if view is None or self._is_over:
            return
        num_right = len(drawn.token_ids) - 1
        count = self._counts.get(drawn.seq, DraftCount())
        self._counts[drawn.seq] = count.plus(DraftCount(len(drawn.draft), num_right))
        with self._guard("a draft was reported"):
            self.speculation.report(view.key, drawn.draft, num_right)

    def measured(self, plan: StepPlan, seconds: float) -> None:
        """Count the turns of a step, and tell what it took if it was for these alone."""
        drafted = plan.drafted()
        self.decode_turns_total += len(plan.decode) + len(drafted)
        if not plan.num_prefill_tokens and not self._is_over:
            num_rows = len(plan.decode) + sum(chunk.num_tokens for chunk in drafted)
            with self._guard("a step was measured"):
                self.speculation.measured(num_rows, seconds)

    def drop(self, seq: Sequence) -> DraftCount:
        """Tell that a sequence has ended; return what was drafted for it."""
        if not self._is_over:
            with self._guard("a sequence was dropped"):
                self.speculation.drop(self._view(seq))
        self._views.pop(seq, None)
        return self._counts.pop(seq, DraftCount())

    def learn_answer(self, name: int, group: str, token_ids: TokenIds[int]) -> None:
        """Pass on an answer that the engine did not give itself."""
        if not self._is_over:
            with self._guard("an answer was learned"):
                self.speculation.learn_answer(name, group, token_ids)

    def drop_answers(self, names: TokenIds[int]) -> None:
        """Pass on which answers are to be forgotten."""
        with self._guard("answers were forgotten"):
            self.speculation.drop_answers(names)

    @property
    def _is_over(self) -> bool:
        self._has_failed = self._has_failed or bool(self._containment.take())
        return self._has_failed

    def _guard(self, doing: str) -> Guard[str]:
        return self._containment.guard("drafting", doing)

    def _view(self, seq: Sequence) -> DraftView:
        view = self._views.get(seq)
        if view is None:
            request = seq.request
            view = self._views[seq] = DraftView(
                key=next(self._keys),
                group=request.cache_salt,
                token_ids=seq.token_ids,
                num_prompt=seq.num_prompt,
                walk_grammar=None if seq.grammar is None else partial(self._constrained.walk, seq),
                lane=request.lane,
                request_id=request.request_id,
                beside=None if seq.grammar is None else partial(self._constrained.begin, seq),
            )
        return view


def _can_ask(seq: Sequence) -> bool:
    """Tell whether the next step may hold a draft of a sequence, or hold it back for one."""
    if seq.state is not SequenceState.RUNNING or not seq.num_output or seq.is_refilling:
        return False
    if seq.grammar is not None:
        if seq.num_inflight or seq.awaits_grammar:
            return False
        # Drafts of a grammar that takes long would be late, and keep the threads of masks.
        if seq.matcher is not None and seq.matcher.is_slow:
            return False
    return not seq.draft and seq.held_end is None
