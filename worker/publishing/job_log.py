"""A job as its publisher knows it: what it has generated, and how much of that its log holds."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.events import FINISHED_REASONS, Finish, Usage
from tokenbus.producer.contract.keys import shard_of
from tokenbus.worker.publishing.choice_text import ChoiceText
from tokenbus.worker.publishing.tool_output import read_tool_calls
from tokenbus.worker.publishing.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.text.detokenizer import ByteTable
    from tokenbus.producer.contract.events import Event, Failure, ToolCall
    from tokenbus.worker.publishing.messages import TakeOver


class State(Enum):
    """Which way a job log is going.

    `open`: tokens come. `ending`: its outcome is decided, tokens or the terminal entry are not in
    the log yet. `committed`: the terminal entry is in the log. `returning`: it goes back to the
    queue once its tokens are logged.
    """

    OPEN = "open"
    ENDING = "ending"
    COMMITTED = "committed"
    RETURNING = "returning"


class JobLog:
    """One job's tokens and texts, and the end of its log.

    `num_logged` and `num_entries` say where the log is known to end; they count only while
    `log_known`, that is between a takeover and the next opening of the session. `last` is the index
    of the last token known; `unlogged_since` is when the oldest token that no call has taken yet
    was handed over.
    """

    __slots__ = (
        "append_one",
        "cached_tokens",
        "epoch",
        "finish",
        "has_spoken",
        "in_flight",
        "is_ahead",
        "is_barred",
        "is_forgotten",
        "is_queued",
        "is_restoring",
        "job_id",
        "key",
        "last",
        "line_up",
        "log_known",
        "num_credited",
        "num_entries",
        "num_logged",
        "prompt_logprobs",
        "prompt_tokens",
        "reasons",
        "rules",
        "sent_at",
        "shard",
        "state",
        "texts",
        "transcript",
        "unlogged_since",
        "writer_idx",
    )

    def __init__(self, order: TakeOver) -> None:
        self.key = order.key
        self.job_id = order.job_id
        self.shard = shard_of(order.job_id)
        self.epoch = order.epoch
        self.prompt_tokens = order.prompt_tokens
        self.rules = order.rules
        self.state = State.OPEN
        self.transcript: Transcript | None = None
        self.texts: list[ChoiceText] = []
        self.reasons: list[str | None] = []
        self.finish: Finish | None = None
        self.prompt_logprobs: tuple[Any, ...] = ()
        self.cached_tokens = 0
        self.writer_idx = 0
        self.num_logged = self.num_credited = self.num_entries = self.last = 0
        # How it gets its turn with its log writer.
        self.line_up: Callable[[JobLog], None] = _stay
        self.sent_at = 0.0
        self.unlogged_since: float | None = None
        self.log_known = self.in_flight = self.is_queued = self.is_restoring = False
        # Barred: the log is another's, nothing is tried before the session opens anew. Ahead: the
        # engine began it before its log was taken over. Spoken: a token of this owner is logged.
        self.is_ahead = order.is_ahead
        self.is_barred = self.has_spoken = self.is_forgotten = False

    @property
    def is_fully_logged(self) -> bool:
        """Tell whether the log holds every token known."""
        return self.log_known and self.num_logged >= self.last

    @property
    def wants_log(self) -> bool:
        """Tell whether there is something to write."""
        if self.is_barred or self.is_restoring or self.is_forgotten:
            return False
        if self.state is State.OPEN:
            return not self.log_known or self.num_logged < self.last
        if self.state is State.RETURNING:
            return self.log_known and self.num_logged < self.last
        return self.state is State.ENDING or not self.log_known

    @property
    def is_settled(self) -> bool:
        """Tell whether it may go back to the queue."""
        return self.state is State.RETURNING and not self.in_flight and not self.wants_log

    def restore(
        self,
        events: Iterable[Event],
        tokenizer: PreTrainedTokenizerBase | ByteTable,
    ) -> None:
        """Begin from what earlier owners logged: text, stop state and which choices had ended."""
        tokens = list(events)
        num_choices = max((event.choice + 1 for event in tokens), default=1)
        if self.rules is not None:
            num_choices = max(num_choices, self.rules.num_choices)
        transcript = Transcript(self.job_id, num_choices)
        transcript.restore(tokens)
        self.reasons = [None] * num_choices
        self.num_credited = self.last = transcript.last
        self.transcript = transcript
        self.append_one = transcript.append_one
        rules = self.rules
        if rules is None:
            return
        params = rules.params()
        for choice in range(rules.num_choices):
            text = ChoiceText(tokenizer, rules.prompt_tail, params)
            self.texts.append(text)
            ids = transcript.ids_of(choice)
            if not ids:
                continue
            is_stopped = text.push(ids).stopped_by is not None
            if is_stopped or (ids[-1] in rules.stop_ids and len(ids) >= rules.min_tokens):
                self.reasons[choice] = FinishReason.STOP.value
            elif len(ids) >= rules.max_tokens:
                self.reasons[choice] = FinishReason.LENGTH.value

    def decide(self, reason: str, error: Failure | None = None) -> None:
        """Fix the outcome; what is not logged yet is logged before the terminal entry."""
        usage = Usage(self.prompt_tokens, self.cached_tokens, self.last)
        choices = tuple(choice or reason for choice in self.reasons)
        stops = self._stop_reasons()
        self.finish = Finish(reason, usage, error, choices, self._tool_calls(reason), stops)
        self.state = State.ENDING

    def _stop_reasons(self) -> tuple[int | str | None, ...]:
        """Return per choice the stop string or stop id that ended it; empty where none did."""
        stops = tuple(self._stop_reason(choice) for choice in range(len(self.texts)))
        return stops if any(stop is not None for stop in stops) else ()

    def _stop_reason(self, choice: int) -> int | str | None:
        rules = self.rules
        if self.reasons[choice] != FinishReason.STOP or rules is None or self.transcript is None:
            return None
        ids, stopped_by = self.transcript.ids_of(choice), self.texts[choice].stopped_by
        if stopped_by is not None or not ids or len(ids) < rules.min_tokens:
            return stopped_by
        is_own = ids[-1] in rules.stop_ids and ids[-1] not in rules.eos_ids
        return ids[-1] if is_own else None

    def _tool_calls(self, reason: str) -> tuple[ToolCall, ...]:
        reader = self.rules.tools if self.rules is not None else None
        if reader is None or self.transcript is None or reason not in FINISHED_REASONS:
            return ()
        texts = [self.transcript.text_of(choice) for choice in range(len(self.reasons))]
        return read_tool_calls(reader, self.job_id, texts)

    def outcome(self) -> str:
        """Return the reason of the whole from those of its choices."""
        for reason in ("failed", "length"):
            if reason in self.reasons:
                return reason
        return "stop"

    def lengths(self) -> list[int]:
        """Count the tokens of each choice."""
        if self.transcript is None:
            return []
        return [self.transcript.num_tokens(choice) for choice in range(len(self.reasons))]


def _stay(_: JobLog) -> None:
    """Wait for no turn: no log writer was chosen yet."""
