"""A sequence: one choice of one request on its way through the engine."""

from __future__ import annotations

from array import array
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from tokenbus.engine.errors import EngineError
from tokenbus.engine.scheduling.prefix_cache import PageHash, chain_hash, root_hash

if TYPE_CHECKING:
    from tokenbus.engine.grammar.grammar import GrammarMatcher
    from tokenbus.engine.types import FinishReason, GrammarSpec, Request, TokenLogprobs


class SequenceState(Enum):
    """Where a sequence is; see `Sequence.move_to` for the legal transitions."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


_LEGAL = {
    (SequenceState.WAITING, SequenceState.RUNNING),
    (SequenceState.RUNNING, SequenceState.WAITING),
    (SequenceState.WAITING, SequenceState.FINISHED),
    (SequenceState.RUNNING, SequenceState.FINISHED),
}


class SequenceEnd(NamedTuple):
    """Why a sequence ended, and how many of its newest tokens it kept."""

    reason: FinishReason
    num_kept: int


class Sequence:
    """Tokens, pages and progress of one choice.

    Token ranges, all counted from the start of the prompt:

        [0, num_computed)            K and V are in `pages`, or will be by the step in flight
        [0, len(token_ids))          ids the host knows: prompt and delivered output

    While it `awaits_grammar`, the mask of its next token is not there and it takes part in no step.

    `num_inflight` tokens at most, sampled on the device and not read back yet, come behind these;
    `num_computed` counts as if all of them did. They are one a step, but for a step with a `draft`,
    which may bring one more than that has. A sequence that `needs_tokens`, for its grammar or for a
    draft, takes part in no step while any is in flight.

    Where logprobs are asked for, the last `num_unscored` known ids are forced by the grammar and
    not delivered: the chunks that compute them bring their log-probabilities. An end that lies
    behind them waits in `held_end`. `draws_forced`: which of the draws in flight have no
    alternative.

    `prompt_logprobs` are those of the first `num_prompt_scored` ids until they are all there and
    delivered; a sequence that brings none counts as scored.

    `leader` computes the page that comes next, and `claim` is the hash of that page where others
    wait for this sequence to compute it: see `PrefillPlanner`.

    Sorted by `order`, the best priority comes first, then the oldest, then the first choice.
    """

    __slots__ = (
        "_hashes",
        "awaits_grammar",
        "choice",
        "claim",
        "decoding",
        "draft",
        "draws_forced",
        "finish_reason",
        "grammar",
        "held_end",
        "is_refilling",
        "leader",
        "matcher",
        "max_length",
        "needs_tokens",
        "num_cached",
        "num_computed",
        "num_inflight",
        "num_prompt",
        "num_prompt_scored",
        "num_registered",
        "num_unscored",
        "order",
        "pages",
        "prompt_logprobs",
        "request",
        "row",
        "state",
        "stop_token_ids",
        "token_ids",
        "was_admitted",
        "was_started",
    )

    def __init__(
        self, request: Request, choice: int, arrival: int, eos_token_ids: tuple[int, ...]
    ) -> None:
        """Create a waiting sequence; `arrival` orders equals, lower first."""
        params = request.params
        resumed = request.resumed_ids[choice] if request.resumed_ids else ()
        self.request = request
        self.choice = choice
        self.order = (request.priority, arrival, choice)
        self.state = SequenceState.WAITING
        self.token_ids = array("i", request.prompt_ids)
        self.token_ids.extend(resumed)
        self.num_prompt = len(request.prompt_ids)
        self.max_length = self.num_prompt + params.max_tokens
        self.num_computed = 0
        self.num_inflight = 0
        self.num_cached = 0
        self.num_registered = 0
        self.pages: list[int] = []
        self.row: int | None = None
        self.decoding = False
        self.is_refilling = bool(resumed)
        self.was_admitted = False
        self.was_started = False
        self.leader: Sequence | None = None
        self.claim: PageHash | None = None
        self.finish_reason: FinishReason | None = None
        self.grammar: GrammarSpec | None = None
        self.awaits_grammar = False
        self.needs_tokens = False
        self.draft: tuple[int, ...] = ()
        self.matcher: GrammarMatcher | None = None
        self.draws_forced: tuple[bool, ...] = (False,)
        self.num_unscored = 0
        self.held_end: FinishReason | None = None
        scores_prompt = self._scores_prompt()
        # Nothing comes before the first.
        self.prompt_logprobs: list[TokenLogprobs | None] = [None] if scores_prompt else []
        self.num_prompt_scored = 1 if scores_prompt else self.num_prompt
        eos = () if params.ignore_eos else eos_token_ids
        self.stop_token_ids = frozenset((*eos, *params.stop_token_ids))
        self._hashes: list[PageHash] = []

    @property
    def num_output(self) -> int:
        """Output tokens the host knows."""
        return len(self.token_ids) - self.num_prompt

    @property
    def num_scored(self) -> int:
        """Known ids that wait for no log-probabilities."""
        return len(self.token_ids) - self.num_unscored

    @property
    def prefill_end(self) -> int:
        """How many known ids chunks compute: all, but the last one where nothing follows it."""
        return len(self.token_ids) - (self.held_end is not None)

    @property
    def caches_prefix(self) -> bool:
        """Whether pages may come from the prefix cache (prompt logprobs need every position)."""
        return self.request.params.prompt_logprobs is None

    def move_to(self, state: SequenceState) -> None:
        """Change state.

        Raises: EngineError on an illegal transition.
        """
        if (self.state, state) not in _LEGAL:
            raise EngineError(
                f"request {self.request.request_id}: {self.state.value} -> {state.value}"
            )
        self.state = state

    def take_scores(
        self, first: int, scores: list[TokenLogprobs | None]
    ) -> tuple[list[int], list[TokenLogprobs]]:
        """Take the log-probabilities of the ids from index `first` on.

        Returns: the ids that waited for them, and theirs; what is computed again after a preemption
            is not delivered again.
        """
        start = self.num_scored
        fresh = [replace(score, forced=True) for score in scores[start - first :] if score]
        self.num_unscored -= len(fresh)
        return list(self.token_ids[start : self.num_scored]), fresh

    def take_prompt_scores(self, first: int, scores: list[TokenLogprobs | None]) -> None:
        """Keep the log-probabilities of the prompt's ids from index `first` on, each once.

        What a preemption made the model compute again is known already.
        """
        fresh = scores[self.num_prompt_scored - first :]
        self.prompt_logprobs.extend(fresh)
        self.num_prompt_scored += len(fresh)

    def page_hash(self, page_idx: int, page_size: int) -> PageHash:
        """Return the chain hash of a page whose tokens the host knows, hashed on first use."""
        return self.page_hashes(page_idx + 1, page_size)[page_idx]

    def page_hashes(self, num_pages: int, page_size: int) -> list[PageHash]:
        """Return the chain hashes of at least the first pages, whose tokens the host knows."""
        hashes = self._hashes
        while len(hashes) < num_pages:
            start = len(hashes) * page_size
            parent = hashes[-1] if hashes else root_hash(self.request.cache_salt)
            hashes.append(chain_hash(parent, self.token_ids[start : start + page_size]))
        return hashes

    def _scores_prompt(self) -> bool:
        """Tell whether this is the choice that brings the log-probabilities of the prompt.

        The first that runs does: a later owner finds some choices done.
        """
        request = self.request
        if request.params.prompt_logprobs is None:
            return False
        return all(choice in request.done_choices for choice in range(self.choice))

    def rewind(self) -> None:
        """Forget all progress in pages; known tokens stay (recompute after a preemption)."""
        self.num_computed = 0
        self.num_registered = 0
        self.pages = []
        self.row = None
        self.decoding = False
        self.is_refilling = self.num_output > 0
        self.leader = None
