"""Speculation as the engine has it: drafts from all sources, and as many of them as pay.

Every sequence gets the guess that promises the most tokens. Of all drafted tokens of a step those
are verified, the likeliest first, that raise the expected tokens a second the most, by what steps
were measured to cost; where a step is long because many sequences ride in it, that is none.

What was guessed is compared with what came, also where no row was spent on it: so a source that was
right lately is asked again after a time in which it was not.
"""

from __future__ import annotations

from collections import Counter
from itertools import accumulate, islice
from operator import mul
from typing import TYPE_CHECKING, NamedTuple

from tokenbus.engine.speculation.acceptance import Acceptance
from tokenbus.engine.speculation.drafter import MAX_STRENGTH
from tokenbus.engine.speculation.grammar_guide import fitting
from tokenbus.engine.speculation.own_text import OwnText
from tokenbus.engine.speculation.pool_text import PoolText
from tokenbus.engine.speculation.step_costs import StepCosts
from tokenbus.engine.types import DraftCount

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.speculation.drafter import Drafter, DraftView, Guess

# Tokens of a draft at most: with the one before them they fill a tile of rows.
MAX_DRAFT = 15
GRAMMAR = "grammar"


class _Piece(NamedTuple):
    """A guess of one source, `at` tokens behind those that were known."""

    source: int
    at: int
    guess: Guess


class _Draft:
    """What may follow `num_known` tokens of a sequence: pieces of it, and rivals of the first.

    `sources` says of each token of the draft who drafted it, `chances` that it is kept; the first
    `num_chosen` are to be verified.
    """

    __slots__ = (
        "chances",
        "num_chosen",
        "num_known",
        "pieces",
        "rivals",
        "sources",
        "token_ids",
    )

    def __init__(self, num_known: int, pieces: list[_Piece], rivals: list[_Piece]) -> None:
        self.num_known = num_known
        self.pieces = pieces
        self.rivals = rivals
        self.token_ids = [each for piece in pieces for each in piece.guess.token_ids]
        self.sources = [piece.source for piece in pieces for _ in piece.guess.token_ids]
        self.chances: list[float] = []
        self.num_chosen = 0

    def weigh(self, shares: list[list[float]]) -> None:
        """Set the chances, given the shares of right tokens of its lane."""
        chances = [1.0]
        for piece in self.pieces:
            chances += islice(accumulate(_shares(piece, shares), mul, initial=chances[-1]), 1, None)
        self.chances = chances[1:]


class DraftPlanner:
    """Drafts from a sequence's own text, its group's answers and its grammar."""

    def __init__(self, group_bytes: int) -> None:
        """Keep at most so many bytes of the answers of each group."""
        self.pool = PoolText(group_bytes)
        self.costs = StepCosts()
        self._drafters: tuple[Drafter, ...] = (OwnText(), self.pool)
        # Forced tokens count under a number of their own, behind those of the texts.
        self.names = (*(drafter.name for drafter in self._drafters), GRAMMAR)
        self._acceptance = Acceptance(len(self.names))
        self._drafts: dict[int, _Draft] = {}
        self.drafted_total: Counter[str] = Counter()
        self.accepted_total: Counter[str] = Counter()

    def pays(self, num_seqs: int) -> bool:
        """Tell whether drafts may pay in a step of so many sequences; else nobody is asked."""
        return self.costs.most_drafts(num_seqs, MAX_DRAFT) > 0

    def plan(self, seqs: Sequence[DraftView]) -> dict[int, list[int]]:
        """Return the drafts of the next step by key; sequences that are not in it get none."""
        drafts = [(seq.key, draft) for seq in seqs if (draft := self._draft(seq)) is not None]
        chances = sorted(
            (
                (chance, -number)
                for number, (_, draft) in enumerate(drafts)
                for chance in draft.chances
            ),
            reverse=True,
        )
        num_chosen = self.costs.best(len(seqs), [chance for chance, _ in chances])
        for _, number in chances[:num_chosen]:
            drafts[-number][1].num_chosen += 1
        return {
            key: draft.token_ids[: draft.num_chosen] for key, draft in drafts if draft.num_chosen
        }

    def report(self, key: int, draft: Sequence[int], num_right: int) -> None:
        """Count a draft that was verified, and how many of its tokens were right.

        What it has beyond the plan was added by the sequence's grammar.
        """
        planned = self._drafts.get(key)
        known = [] if planned is None else planned.sources[: planned.num_chosen]
        sources = [*known, *[len(self._drafters)] * len(draft)]
        for number, source in enumerate(sources[: len(draft)]):
            self.drafted_total[self.names[source]] += 1
            self.accepted_total[self.names[source]] += number < num_right

    def measured(self, num_rows: int, seconds: float) -> None:
        """Hear what a step of so many decode rows and nothing else took."""
        self.costs.measured(num_rows, seconds)

    def drop(self, seq: DraftView) -> None:
        """Hear that a sequence has ended."""
        self._drafts.pop(seq.key, None)
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

    def _draft(self, seq: DraftView) -> _Draft | None:
        """Draft anew, if tokens have come since the last time, and learn from these."""
        before = self._drafts.pop(seq.key, None)
        num_known = len(seq.token_ids)
        if before is not None and before.num_known < num_known:
            self._learn(seq, before)
        shares = self._acceptance.of(seq.lane)
        context = list(seq.token_ids[-MAX_STRENGTH:])
        if seq.walk_grammar is None:
            rivals = self._guesses(seq, context, MAX_DRAFT)
            pieces = [_best(rivals, shares)] if rivals else []
        else:
            # What the grammar forbids of the others is no fault of theirs.
            pieces, rivals = self._fitting(seq, context, shares), []
        if not pieces:
            return None
        draft = self._drafts[seq.key] = _Draft(num_known, pieces, rivals)
        draft.weigh(shares)
        return draft

    def _guesses(self, seq: DraftView, context: Sequence[int], limit: int) -> list[_Piece]:
        found = (
            (number, each.propose(seq, context, limit))
            for number, each in enumerate(self._drafters)
        )
        return [_Piece(number, 0, guess) for number, guess in found if guess is not None]

    def _fitting(
        self, seq: DraftView, context: Sequence[int], shares: list[list[float]]
    ) -> list[_Piece]:
        """Return a draft that the sequence's grammar allows, texts and forced tokens in turn."""

        def propose(context: Sequence[int], limit: int) -> tuple[int, Guess] | None:
            guesses = self._guesses(seq, context, limit)
            if not guesses:
                return None
            best = _best(guesses, shares)
            return best.source, best.guess

        assert seq.walk_grammar is not None
        walk, at, pieces = seq.walk_grammar(), 0, []
        for source, guess in fitting(walk, context, propose, MAX_DRAFT, len(self._drafters)):
            pieces.append(_Piece(source, at, guess))
            at += len(guess.token_ids)
        return pieces

    def _learn(self, seq: DraftView, draft: _Draft) -> None:
        """Compare guesses with the tokens that came."""
        came = seq.token_ids[draft.num_known :]
        for piece in draft.rivals:
            self._compare(seq.lane, piece, came)
        for piece in draft.pieces:
            if piece.at >= len(came) or list(came[: piece.at]) != draft.token_ids[: piece.at]:
                break
            if piece not in draft.rivals:
                self._compare(seq.lane, piece, came)

    def _compare(self, lane: str, piece: _Piece, came: Sequence[int]) -> None:
        at, strength = piece.at, piece.guess.strength
        for number, token_id in enumerate(piece.guess.token_ids[: len(came) - at]):
            is_right = came[at + number] == token_id
            self._acceptance.learn(
                lane, piece.source, min(MAX_STRENGTH, strength + number), is_right=is_right
            )
            if not is_right:
                break


def _shares(piece: _Piece, shares: list[list[float]]) -> list[float]:
    """Return the share of right tokens for each of a piece's."""
    num_tokens, strength = len(piece.guess.token_ids), piece.guess.strength
    own = shares[piece.source][strength : strength + num_tokens]
    return own + [shares[piece.source][MAX_STRENGTH]] * (num_tokens - len(own))


def _best(pieces: list[_Piece], shares: list[list[float]]) -> _Piece:
    """Return the guess that promises the most tokens."""
    if len(pieces) == 1:
        return pieces[0]
    return max(pieces, key=lambda piece: _promise(piece, shares))


def _promise(piece: _Piece, shares: list[list[float]]) -> float:
    """Return how many of a guess's tokens are expected to be right."""
    promise: float = sum(accumulate(_shares(piece, shares), mul))
    return promise
