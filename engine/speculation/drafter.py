"""The interface of drafters: what the engine asks of them, and what they propose.

A draft is right exactly if it equals what the engine draws, so nothing here can change a text: it
only decides how many tokens a step brings. All of it is called from the engine's thread, between
two steps, and has to be short: a few microseconds a sequence.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tokenbus.engine.types import DraftCount

# Of a guess: so many tokens alike and more count the same.
MAX_STRENGTH = 16


class GrammarWalk(Protocol):
    """A copy of a sequence's place in its grammar; to walk it does not move the sequence."""

    def forced(self) -> list[int]:
        """Return the tokens that have no alternative from here on; they are not walked yet."""
        ...

    def likely(self) -> list[int]:
        """Return the tokens that begin keys and values a schema names, in its order.

        Only those that may come next, and none where a text is free.
        """
        ...

    def accept(self, token_id: int) -> bool:
        """Walk on by one token; False, and nothing moved, if it is not allowed."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class DraftView:
    """A sequence as drafters see it.

    key: its own, never used again.
    group: whose texts it may be drafted from and may be kept for; "" = its own alone.
    token_ids: prompt and output that the host knows, live and not to be written.
    num_prompt: how many of them are the prompt.
    walk_grammar: starts a walk at the place behind these tokens; None where there is no grammar.
        The walk is for another thread, to which `beside` takes it: nobody knows how long it takes.
    lane: under which acceptance is learned, a label of jobs that resemble each other.
    request_id: the request that it is a choice of; its answers are forgotten by that.
    beside: begins work in a thread beside the engine; None: it is done at once.
    """

    key: int
    group: str
    token_ids: Sequence[int]
    num_prompt: int
    walk_grammar: Callable[[], GrammarWalk] | None = None
    lane: str = ""
    request_id: int = 0
    beside: Callable[[Callable[[], None]], object] | None = None


class Guess(NamedTuple):
    """Tokens that may follow, and how much speaks for the first of them.

    strength: tokens that were alike before it, 0 to `MAX_STRENGTH`. Each later token has one more,
        for it is reached only if the ones before it were right.
    """

    token_ids: list[int]
    strength: int


class Drafter(Protocol):
    """One way to guess what comes next; a draft model is another one, behind the same methods.

    name: as metrics tell it.
    """

    name: str

    def propose(self, seq: DraftView, context: Sequence[int], limit: int) -> Guess | None:
        """Return tokens that may follow, at most `limit`; None where it knows none.

        `context` has the newest tokens of the sequence, and behind these what is drafted already.
        """
        ...

    def follow(self, seq: DraftView, limit: int) -> Guess | None:
        """Return tokens that may follow the newest ones, as `propose` does.

        What was found at the last call is kept as long as the sequence goes along with it.
        """
        ...

    def drop(self, seq: DraftView) -> None:
        """Hear that a sequence has ended."""
        ...


class Speculation(Protocol):
    """What the engine asks for drafts: drafters, and a budget for them."""

    def pays(self, num_seqs: int) -> bool:
        """Tell whether drafts may pay in a step of so many sequences; else nobody is asked."""
        ...

    def plan(self, seqs: Sequence[DraftView]) -> Mapping[int, Sequence[int]]:
        """Return the drafts of the next step by key; sequences that are not in it get none.

        `seqs` are those that decode in it. Where the newest token is still on the device, a draft
        for the tokens known so far only makes the engine wait for it and ask again.
        """
        ...

    def report(self, key: int, draft: Sequence[int], num_right: int) -> None:
        """Hear how many tokens of a draft, from its first, were right."""
        ...

    def measured(self, num_rows: int, seconds: float) -> None:
        """Hear what a step took that computed nothing but so many rows of decoding sequences."""
        ...

    def drop(self, seq: DraftView) -> None:
        """Hear that a sequence has ended, with all the tokens that it got."""
        ...

    def learn_answer(self, name: int, group: str, token_ids: Sequence[int]) -> None:
        """Let drafts for a group come from an answer that the engine did not give itself."""
        ...

    def drop_answers(self, names: Sequence[int]) -> None:
        """Let no more drafts come from answers, by the names they came under.

        Those that the engine gave itself have the numbers of their requests.
        """
        ...

    def totals(self) -> tuple[tuple[str, DraftCount], ...]:
        """Return what was verified of each drafter's tokens."""
        ...
