"""The vocabulary of the engine: what goes in, what comes out.

The file is one noun, past three hundred lines: all that a caller and an engine tell each other.
"""

from __future__ import annotations

# Read at run time to decode the hand-off.
from collections.abc import Mapping, Sequence  # noqa: TC003
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple


class FinishReason(StrEnum):
    """Why a sequence ended; `tool_calls` is said of an answer that stopped with calls in it."""

    STOP = "stop"
    TOOL_CALLS = "tool_calls"
    LENGTH = "length"
    ABORTED = "aborted"
    FAILED = "failed"


# Characters of a message about one request.
_MAX_MESSAGE = 2000


class FaultCode(StrEnum):
    """Why the engine gave a sequence up.

    `grammar`: its grammar does not compile, cannot advance or leaves no token. `rules`: its bad
    words, biases and filters leave none. `numerics`: the model's numbers for it are not finite.
    `engine`: anything else.
    """

    GRAMMAR = "grammar"
    RULES = "rules"
    NUMERICS = "numerics"
    ENGINE = "engine"


def travelling(message: str) -> str:
    """Return a message that may quote a request as UTF-8 can carry it, cut where it is long."""
    return message[:_MAX_MESSAGE].encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Fault:
    """What ended a sequence that failed, in one sentence, made fit to travel."""

    code: FaultCode
    message: str

    def __post_init__(self) -> None:
        """Cut and mend the message."""
        object.__setattr__(self, "message", travelling(self.message))

    def __str__(self) -> str:
        """Return the sentence."""
        return self.message


class GrammarKind(StrEnum):
    """The source language of a grammar."""

    JSON_SCHEMA = "json_schema"
    REGEX = "regex"
    CHOICE = "choice"
    LARK = "lark"


@dataclass(frozen=True, slots=True)
class GrammarSpec:
    """A constraint on the whole output; `source` is JSON for `json_schema` and `choice`.

    before: Lark rules of `before`, which the output begins with: reasoning, for instance.
    watched: where JSON stands in the output whose keys have to be watched (`WatchedAnswer.dump`);
        "" where that is the whole of it, or nowhere.
    given_bytes: what its author gave, where `source` was made of that; None where it is that.
    """

    kind: GrammarKind
    source: str
    before: str = ""
    watched: str = ""
    given_bytes: int | None = None


_EMPTY: Mapping[int, float] = MappingProxyType({})


class OpenFloat(float):
    """A number that nobody chose: it counts unless the checkpoint has a default of its own."""

    __slots__ = ()


class OpenInt(int):
    """The same of a whole number."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """What the checkpoint says of fields that a request leaves out; None where it says nothing."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None

    def given(self) -> dict[str, float]:
        """Return what it says, by field."""
        values = ((name, getattr(self, name)) for name in self.__dataclass_fields__)
        return {name: value for name, value in values if value is not None}


NO_DEFAULTS = SamplingDefaults()


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one job's tokens are drawn and when it ends.

    `temperature` 0 is greedy. `top_k` 0, `top_p` 1, `min_p` 0 and penalties at their defaults are
    off. `max_tokens` 0 computes the prompt alone. `logprobs` and `prompt_logprobs` give the number
    of alternatives (0 = the chosen token alone, None = none). The draw is keyed by (seed, choice,
    position) and by nothing else; a `seed` that is left open is drawn by `LLM`, and 0 to the
    engine.
    Fields for which a checkpoint may have a default are open numbers where they are left out.
    """

    n: int = 1
    max_tokens: int = 128
    min_tokens: int = 0
    temperature: float = OpenFloat(1.0)
    top_k: int = OpenInt(0)
    top_p: float = OpenFloat(1.0)
    min_p: float = OpenFloat(0.0)
    repetition_penalty: float = OpenFloat(1.0)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=lambda: _EMPTY)
    bad_words: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()
    include_stop: bool = False
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: GrammarSpec | None = None

    def open_among(self, defaults: SamplingDefaults) -> dict[str, float]:
        """Return those defaults that take the place of another number which nobody chose."""
        return {
            name: value
            for name, value in defaults.given().items()
            if isinstance(own := getattr(self, name), (OpenFloat, OpenInt)) and own != value
        }


@dataclass(frozen=True, slots=True)
class Request:
    """One job as the engine sees it: token ids only.

    `prompt_ids` are best an array of C ints, which the engine looks at without a loop: of two
    thousand ids each loop costs as much as the rest of a request's way into the batch.
    `resumed_ids` holds, per choice, tokens that were already delivered by an earlier owner; they
    count as output (max_tokens, penalties, draw positions) and are not delivered again;
    `done_choices` ended under that owner and are not run. Stop
    strings are not the engine's: the holder of the text aborts the request.
    `priority` 0 is served first. Pages are shared only between equal `cache_salt`s. Output lengths
    are learned per `lane`, any label under which jobs resemble each other. Work beside the batch is
    shared out by `tenant`.
    """

    request_id: int
    prompt_ids: Sequence[int]
    params: SamplingParams
    priority: int = 1
    cache_salt: str = ""
    lane: str = ""
    tenant: str = ""
    resumed_ids: tuple[tuple[int, ...], ...] = ()
    done_choices: tuple[int, ...] = ()

    def with_prompt(self, prompt_ids: Sequence[int]) -> Request:
        """Return the same request with another prompt; `replace` takes three times as long."""
        return Request(
            self.request_id,
            prompt_ids,
            self.params,
            self.priority,
            self.cache_salt,
            self.lane,
            self.tenant,
            self.resumed_ids,
            self.done_choices,
        )


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities of one position under the raw distribution (before any filter).

    `forced`: a grammar left no other token.
    """

    token_id: int
    logprob: float
    rank: int
    top: tuple[tuple[int, float], ...] = ()
    forced: bool = False


class DraftCount(NamedTuple):
    """Tokens that were drafted and verified, and those of them that were right."""

    drafted: int = 0
    accepted: int = 0

    def plus(self, other: DraftCount) -> DraftCount:
        """Return both together."""
        return DraftCount(self.drafted + other.drafted, self.accepted + other.accepted)


class TokenDelta(NamedTuple):
    """New tokens of one choice, in order; the last delta of a choice has a `finish_reason`.

    `logprobs` has an entry per token if they were asked for, and is empty otherwise.
    `stop_token_id` is the id that ended the choice (already the last of `token_ids`), if one did.
    `drafts` comes with the last delta. A tuple, because a step makes one for each of its rows.
    """

    request_id: int
    choice: int
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    error: Fault | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()
    prompt_logprobs: tuple[TokenLogprobs | None, ...] | None = None
    drafts: DraftCount = DraftCount()


class Admission(NamedTuple):
    """A request that began to run in this step, with the prompt tokens its pages already held."""

    request_id: int
    num_prompt_tokens: int
    num_cached_tokens: int


class EngineStats(NamedTuple):
    """Counters and gauges; `*_total` only grow. A tuple, because every step makes one.

    `shared_pages` are held by more than one sequence. `decode_turns_total` counts the sequences of
    all decode steps, `drafts_total` is by drafter.
    """

    num_pages: int
    free_pages: int
    evictable_pages: int
    num_running: int
    num_waiting: int
    steps_total: int = 0
    prompt_tokens_total: int = 0
    cached_tokens_total: int = 0
    generated_tokens_total: int = 0
    preempted_tokens_total: int = 0
    preemptions_total: int = 0
    shared_pages: int = 0
    decode_turns_total: int = 0
    drafts_total: tuple[tuple[str, DraftCount], ...] = ()


@dataclass(frozen=True, slots=True)
class StepOutput:
    """Everything that one step delivers."""

    deltas: tuple[TokenDelta, ...]
    admitted: tuple[Admission, ...]
    preempted: tuple[int, ...]
    stats: EngineStats


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What a caller has to know to pull work: sizes in tokens and pages.

    `checkpoint` is the digest of the weights, empty where there are none.
    """

    model: str
    num_pages: int
    page_size: int
    max_model_len: int
    max_num_seqs: int
    eos_token_ids: tuple[int, ...]
    vocab_size: int
    sampling_defaults: SamplingDefaults = NO_DEFAULTS
    checkpoint: str = ""
