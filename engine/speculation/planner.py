"""Speculation as the engine has it: drafts from all sources, and as many of them as pay.

Every sequence gets the guess that promises the most tokens. Of all drafted tokens of a step those
are verified, the likeliest first, that raise the expected tokens a second the most, by what steps
were measured to cost; where a step is long because many sequences ride in it, that is none.

What was guessed is compared with what came, also where no row was spent on it: so a source that was
right lately is asked again after a time in which it was not. Where planning takes longer than it
saves, as it may for many sequences of a small model, it is done again after a number of steps.

What a grammar forces behind a drawn token comes without drafts too, so a step that drafts nothing
counts for as many tokens as such steps brought.

The file is one noun, past three hundred lines: a draft is made, chosen and learned from here.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from operator import neg
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

from tokenbus.engine.speculation.acceptance import Acceptance, chances_of
from tokenbus.engine.speculation.drafter import MAX_STRENGTH
from tokenbus.engine.speculation.grammar_guide import Fitting
from tokenbus.engine.speculation.own_text import OwnText
from tokenbus.engine.speculation.pool_text import PoolText
from tokenbus.engine.speculation.step_costs import StepCosts
from tokenbus.engine.types import DraftCount

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.engine.speculation.acceptance import Shares
    from tokenbus.engine.speculation.drafter import Drafter, DraftView, Guess

# Tokens of a draft at most: with the one before them they fill a tile of rows.
MAX_DRAFT = 15
GRAMMAR = "grammar"
# What a plan takes the host for each sequence outside of grammars, and how much of a step plans may
# take for all.
_PLAN_S, _LONGEST = 40e-6, 0.5
# Weight of the newest in averages of what plans take and of what steps bring. A plan counts for so
# many times the average at most: a thread that was held up once would plan rarely for minutes.
_NEWEST, _MOST_TIMES = 1 / 16, 4
# A plan that takes more than this share of a step, and longer than what it chose is to save, is
# followed by so many steps without one that it is this share of all of them.
_DEAR, _WASTED_SHARE = 0.2, 0.01
# What a step waits at most for drafts inside grammars, in seconds; most take 0.1 to 0.5 ms.
# A sequence whose draft is not there gets none, and is not asked for one for so many steps.
_FITTING_WAIT_S, _LATE_STEPS = 0.005, 64


class _Piece(NamedTuple):
    """A guess of one source, `at` tokens behind those that were known."""

    source: int
    at: int
    guess: Guess


class _Draft:
    """What may follow `num_known` tokens of a sequence: pieces of it, and rivals of the first.

    `chances` say of each token that it is kept; the likeliest `num_chosen` are to be verified.
    `turn` is the number of the step that it was made for.
    """

    __slots__ = ("chances", "num_chosen", "num_known", "pieces", "rivals", "turn")

    def __init__(
        self,
        num_known: int,
        turn: int,
        pieces: list[_Piece],
        rivals: list[_Piece],
        chances: list[float],
    ) -> None:
        self.num_known = num_known
        self.turn = turn
        self.pieces = pieces
        self.rivals = rivals
        self.chances = chances
        self.num_chosen = 0

    def token_ids(self) -> list[int]:
        """Return the tokens of all pieces."""
        if len(self.pieces) == 1:
            return self.pieces[0].guess.token_ids
        return [each for piece in self.pieces for each in piece.guess.token_ids]


class DraftPlanner:
    """Drafts from a sequence's own text, its group's answers and its grammar."""

    def __init__(self, group_bytes: int, *, clock: Callable[[], float] = time.perf_counter) -> None:
        """Keep at most so many bytes of the answers of each group; plans are timed by `clock`."""
        self._clock = clock
        self.pool = PoolText(group_bytes)
        self.costs = StepCosts()
        self._drafters: tuple[Drafter, ...] = (OwnText(), self.pool)
        # Forced tokens count under a number of their own, behind those of the texts.
        self.names = (*(drafter.name for drafter in self._drafters), GRAMMAR)
        self._acceptance = Acceptance(len(self.names))
        self._drafts: dict[int, _Draft] = {}
        # Until which turn a sequence is not asked whose draft was late.
        self._late: dict[int, int] = {}
        self._texts = Lock()
        self._steps_without = 0
        # Steps that were planned or went without; of one that is planned twice both count.
        self._turn = 0
        # Seconds of a plan for each sequence, and tokens that a step brings of one with a grammar.
        self._plan_s, self._grammar_tokens = _PLAN_S, 1.0
        self.drafted_total: Counter[str] = Counter()
        self.accepted_total: Counter[str] = Counter()

    def pays(self, num_seqs: int) -> bool:
        """Tell whether drafts may pay in a step of so many sequences; else nobody is asked."""
        self._turn += 1
        if self._steps_without:
            self._steps_without -= 1
            return False
        # By what was once measured it would be refused for ever: nobody would measure it again.
        is_long = num_seqs * _PLAN_S > _LONGEST * self.costs.of(num_seqs)
        return not is_long and self.costs.may_pay(num_seqs, MAX_DRAFT)

    def plan(self, seqs: Sequence[DraftView]) -> dict[int, list[int]]:
        """Return the drafts of the next step by key; sequences that are not in it get none."""
        began = self._clock()
        self.pool.file()
        drafts = self._all_drafts(seqs)
        saved_s = self._choose(seqs, [draft for _, draft in drafts]) if drafts else 0.0
        taken_s = (self._clock() - began) / max(1, len(seqs))
        self._plan_s += (min(taken_s, _MOST_TIMES * self._plan_s) - self._plan_s) * _NEWEST
        planned_s, step_s = len(seqs) * self._plan_s, self.costs.of(len(seqs))
        if planned_s > max(saved_s, _DEAR * step_s):
            self._steps_without = int(planned_s / (_WASTED_SHARE * step_s))
        return {
            key: draft.token_ids()[: draft.num_chosen] for key, draft in drafts if draft.num_chosen
        }

    def report(self, key: int, draft: Sequence[int], num_right: int) -> None:
        """Count a draft that was verified, and how many of its tokens were right.

        What it has beyond the plan was added by the sequence's grammar.
        """
        planned, at = self._drafts.get(key), 0
        pieces = [] if planned is None else planned.pieces
        most = 0 if planned is None else min(len(draft), planned.num_chosen)
        for piece in pieces:
            end = min(most, at + len(piece.guess.token_ids))
            self._count(self.names[piece.source], at, end, num_right)
            at = end
        self._count(GRAMMAR, at, len(draft), num_right)

    def measured(self, num_rows: int, seconds: float) -> None:
        """Hear what a step of so many decode rows and nothing else took."""
        self.costs.measured(num_rows, seconds)

    def drop(self, seq: DraftView) -> None:
        """Hear that a sequence has ended."""
        self._drafts.pop(seq.key, None)
        self._late.pop(seq.key, None)
        for drafter in self._drafters:
            drafter.drop(seq)

    def learn_answer(self, name: int, group: str, token_ids: Sequence[int]) -> None:
        """Let drafts for a group come from an answer that the engine did not give itself."""
        self.pool.add(name, group, token_ids)

    def drop_answers(self, names: Sequence[int]) -> None:
        """Let no more drafts come from answers, by the names they came under."""
        self.pool.erase(names)

    def totals(self) -> tuple[tuple[str, DraftCount], ...]:
        """Return what was verified of each drafter's tokens."""
        drafted, accepted = self.drafted_total, self.accepted_total
        return tuple((name, DraftCount(drafted[name], accepted[name])) for name in self.names)

    def _choose(self, seqs: Sequence[DraftView], drafts: list[_Draft]) -> float:
        """Give the step's rows to the likeliest tokens of all drafts, as many as pay.

        Returns: the seconds that they are expected to save.
        """
        num_seqs = len(seqs)
        num_tokens = sum(1.0 if seq.walk_grammar is None else self._grammar_tokens for seq in seqs)
        chances = sorted((each for draft in drafts for each in draft.chances), reverse=True)
        num_chosen = left = self.costs.best(num_seqs, chances, num_tokens)
        least = chances[left - 1] if left else 2.0
        for draft in drafts:
            draft.num_chosen = bisect_left(draft.chances, -least, key=neg)
            left -= draft.num_chosen
        for draft in drafts:
            # Of tokens that are as likely as the last chosen one the first get the rest.
            equal = draft.chances.count(least)
            draft.num_chosen += min(left, equal)
            left -= min(left, equal)
        step_s = self.costs.of(num_seqs)
        expected = sum(chances[:num_chosen])
        return (1.0 + expected / num_tokens) * step_s - self.costs.of(num_seqs + num_chosen)

    def _all_drafts(self, seqs: Sequence[DraftView]) -> list[tuple[int, _Draft]]:
        """Return the drafts of those that have any, new where tokens have come."""
        free = [seq for seq in seqs if not self._is_drafted(seq)]
        bound = [seq for seq in free if seq.walk_grammar is not None]
        for seq in free:
            if seq.walk_grammar is None:
                self._follow(seq)
        # From here on the texts are those threads' until the last draft is taken.
        under_way = [(seq, self._begin(seq)) for seq in bound if not self._is_late(seq)]
        ends_at = time.monotonic() + _FITTING_WAIT_S
        for seq, fitting in under_way:
            found = fitting.take(ends_at - time.monotonic())
            if found is None:
                self._late[seq.key] = self._turn + _LATE_STEPS
            else:
                self._keep_fitting(seq, found)
        drafts = ((seq.key, self._drafts.get(seq.key)) for seq in seqs)
        return [(key, draft) for key, draft in drafts if draft is not None]

    def _is_drafted(self, seq: DraftView) -> bool:
        """Tell whether a draft holds still; else learn from the tokens that have come since."""
        before = self._drafts.get(seq.key)
        if before is None:
            return False
        if before.num_known == len(seq.token_ids):
            return True
        del self._drafts[seq.key]
        self._learn(seq, before, self._acceptance.of(seq.lane))
        return False

    def _is_late(self, seq: DraftView) -> bool:
        return self._late.get(seq.key, 0) > self._turn

    def _follow(self, seq: DraftView) -> None:
        """Draft what texts say."""
        rivals = [
            _Piece(number, 0, guess)
            for number, each in enumerate(self._drafters)
            if (guess := each.follow(seq, MAX_DRAFT)) is not None
        ]
        if rivals:
            best, chances = _best(rivals, self._acceptance.of(seq.lane))
            self._keep(seq, [best], rivals, chances)

    def _keep_fitting(self, seq: DraftView, found: list[tuple[int, Guess]]) -> None:
        """Keep a draft that the grammar of a sequence allows."""
        shares = self._acceptance.of(seq.lane)
        at, chances, pieces = 0, list[float](), list[_Piece]()
        for source, guess in found:
            pieces.append(_Piece(source, at, guess))
            at += len(guess.token_ids)
        for piece in pieces:
            if len(chances) < piece.at:
                break
            chances += _chances(piece, shares, chances[-1] if chances else 1.0)
        if pieces:
            # The other sources are not blamed for what the grammar forbids.
            self._keep(seq, pieces, [], chances)

    def _keep(
        self, seq: DraftView, pieces: list[_Piece], rivals: list[_Piece], chances: list[float]
    ) -> None:
        num_known = len(seq.token_ids)
        self._drafts[seq.key] = _Draft(num_known, self._turn, pieces, rivals, chances)

    def _begin(self, seq: DraftView) -> Fitting:
        """Begin to draft what the sequence's grammar allows, texts and forced tokens in turn."""
        shares = self._acceptance.of(seq.lane)

        def propose(context: Sequence[int], limit: int) -> tuple[int, Guess] | None:
            found = [
                _Piece(number, 0, guess)
                for number, each in enumerate(self._drafters)
                if (guess := each.propose(seq, context, limit)) is not None
            ]
            if not found:
                return None
            best, _ = _best(found, shares)
            return best.source, best.guess

        assert seq.walk_grammar is not None
        context = list(seq.token_ids[-MAX_STRENGTH:])
        walk, source = seq.walk_grammar(), len(self._drafters)
        fitting = Fitting(walk, context, propose, MAX_DRAFT, source, self._texts)
        if seq.beside is None:
            fitting.run()
        else:
            seq.beside(fitting.run)
        return fitting

    def _learn(self, seq: DraftView, draft: _Draft, shares: Shares) -> None:
        """Compare guesses with the tokens that came."""
        came = list(seq.token_ids[draft.num_known : draft.num_known + MAX_DRAFT])
        if seq.walk_grammar is not None:
            # What was not drafted, the grammar forced behind the tokens that the steps since drew.
            num_right = _num_alike(draft.token_ids()[: draft.num_chosen], came)
            num_new = len(seq.token_ids) - draft.num_known - num_right
            a_step = max(1.0, num_new / max(1, self._turn - draft.turn))
            self._grammar_tokens += (a_step - self._grammar_tokens) * _NEWEST
        for piece in draft.rivals or draft.pieces:
            token_ids = piece.guess.token_ids
            num_right = _num_alike(token_ids, came[piece.at :])
            is_wrong = num_right < min(len(token_ids), len(came) - piece.at)
            self._acceptance.learn(
                shares, piece.source, piece.guess.strength, num_right, is_wrong=is_wrong
            )
            if not draft.rivals and num_right < len(token_ids):
                # Nothing was compared with what stands behind a wrong token.
                break

    def _count(self, name: str, begin: int, end: int, num_right: int) -> None:
        if end > begin:
            self.drafted_total[name] += end - begin
            self.accepted_total[name] += max(0, min(end, num_right) - begin)


def _num_alike(one: list[int], other: list[int]) -> int:
    """Return how many tokens two texts have in common from their first on."""
    num = min(len(one), len(other))
    if one[:num] == other[:num]:
        return num
    return next(idx for idx in range(num) if one[idx] != other[idx])


def _chances(piece: _Piece, shares: Shares, first: float = 1.0) -> list[float]:
    guess = piece.guess
    return chances_of(shares[piece.source], guess.strength, len(guess.token_ids), first)


def _best(pieces: list[_Piece], shares: Shares) -> tuple[_Piece, list[float]]:
    """Return the guess that promises the most tokens, and the chances of its tokens."""
    promised = [_chances(piece, shares) for piece in pieces]
    sums = [sum(chances) for chances in promised]
    place = sums.index(max(sums))
    return pieces[place], promised[place]
