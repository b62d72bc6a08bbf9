"""A job's log as its publisher knows it: what was generated, and how much of it is logged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tokenbus.engine.chat.usage import Usage
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import FinishReason
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.keys import shard_of
from tokenbus.worker.errors import WorkerError
from tokenbus.worker.publishing.log_states import (
    LEGAL_ACCESS,
    LEGAL_MOVES,
    LogAccess,
    LogState,
    Turn,
)
from tokenbus.worker.publishing.text.told_messages import ToldTranscript, told_messages
from tokenbus.worker.publishing.text.transcript import Transcript

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.text.byte_table import ByteTable
    from tokenbus.producer.contract.events import Event, Failure
    from tokenbus.producer.contract.messages.job_chat import JobChat
    from tokenbus.worker.messages.publishing import TakeOver
    from tokenbus.worker.publishing.text.told_messages import ToldMessages


# Asked for with every entry; through the class a member costs twice as much.
_OPEN, _ENDING, _HANDING_BACK = LogState.OPEN, LogState.ENDING, LogState.HANDING_BACK
_KNOWN, _AHEAD = LogAccess.KNOWN, LogAccess.AHEAD


class JobLog:
    """One job's tokens and texts, and how far its log holds them.

    `num_logged` and `num_entries` say where the log ends; they count only while `access` is
    `known`. `last` is the index of the last token generated; `unlogged_since` is when the oldest
    token that no call has taken yet was delivered. `enqueue` puts the job into the queue of its log
    writer. `is_overdue`: it was started ahead, and no token has come for so long that its log gets
    a marker alone. `messages` reads the answers, where they are messages.
    """

    __slots__ = (
        "_void_access",
        "access",
        "append_one",
        "cached_tokens",
        "enqueue",
        "epoch",
        "finish",
        "is_overdue",
        "job_id",
        "key",
        "last",
        "listen",
        "messages",
        "num_credited",
        "num_entries",
        "num_logged",
        "priority",
        "prompt_logprobs",
        "prompt_tokens",
        "published_at",
        "reasons",
        "rules",
        "sent_at",
        "shard",
        "state",
        "submitted_at",
        "texts",
        "transcript",
        "turn",
        "unlogged_since",
        "version",
        "writer_idx",
    )

    def __init__(
        self, order: TakeOver, *, enqueue: Callable[[JobLog], None], writer_idx: int = 0
    ) -> None:
        self.key = order.key
        self.job_id = order.job_id
        self.shard = shard_of(order.job_id)
        self.version = order.version
        self.listen = order.listen
        self.epoch = order.epoch
        self.prompt_tokens = order.prompt_tokens
        self.priority = order.priority
        self.submitted_at = order.submitted_at
        self.published_at: float | None = None
        self.rules = order.rules
        self.state = LogState.OPEN
        # What the log is to us whenever nothing is known of it: ahead until it was found empty.
        self._void_access = LogAccess.AHEAD if order.is_ahead else LogAccess.UNKNOWN
        self.access = self._void_access
        self.is_overdue = False
        self.turn = Turn.NONE
        self.enqueue = enqueue
        self.writer_idx = writer_idx
        self.transcript: Transcript | None = None
        self.messages: ToldMessages | None = None
        self.texts: list[ChoiceText] = []
        self.reasons: list[str | None] = []
        self.finish: Finish | None = None
        self.prompt_logprobs: tuple[Any, ...] = ()
        self.cached_tokens = 0
        self.num_logged = self.num_credited = self.num_entries = self.last = 0
        self.sent_at = 0.0
        self.unlogged_since: float | None = None

    def enqueue_by(self, enqueue: Callable[[JobLog], None]) -> None:
        """Go into the queue of the log writer by another of its ways from now on."""
        self.enqueue = enqueue

    def move_to(self, state: LogState) -> None:
        """Change the state.

        Raises: WorkerError on an illegal move, which is a bug.
        """
        if state is self.state:
            return
        if state not in LEGAL_MOVES[self.state]:
            raise WorkerError(
                f"the log of job {self.job_id} cannot go from {self.state.value} to {state.value}"
            )
        self.state = state

    def set_access(self, access: LogAccess) -> None:
        """Change the access.

        Raises: WorkerError on an illegal move, which is a bug.
        """
        if access is self.access:
            return
        if access not in LEGAL_ACCESS[self.access]:
            raise WorkerError(
                f"the log of job {self.job_id} cannot turn from {self.access.value}"
                f" to {access.value}"
            )
        self.access = access

    def take_over(self) -> None:
        """Note that the log was taken over; it will not be `ahead` again."""
        self.set_access(LogAccess.KNOWN)
        self._void_access = LogAccess.UNKNOWN

    def void(self) -> None:
        """Void what is known of the log, so that a takeover comes next.

        A log that is being read stays so: its reading belongs to the session that was lost, and
        ends by that.
        """
        if self.access is not LogAccess.RESTORING:
            self.set_access(self._void_access)

    @property
    def chat(self) -> str:
        """Return what a marker says of the answers if nothing is logged: how they are read."""
        if self.messages is not None:
            return self.messages.chat
        own = None if self.rules is None else self.rules.chat
        return "" if own is None else own.dump()

    @property
    def is_fully_logged(self) -> bool:
        """Tell whether the log holds every token generated."""
        return self.access is _KNOWN and self.num_logged >= self.last

    @property
    def begins(self) -> bool:
        """Tell whether the next call creates the log with what there is: tokens, or the end."""
        if self.access is not _AHEAD:
            return False
        if self.state is _OPEN or self.state is _HANDING_BACK:
            return self.last > 0
        return self.state is _ENDING

    @property
    def wants_log(self) -> bool:
        """Tell whether there is something to ask of the log: a start, an append or an end."""
        state, access = self.state, self.access
        if access is _KNOWN:
            if state is _OPEN or state is _HANDING_BACK:
                return self.num_logged < self.last
            return state is _ENDING
        if access is LogAccess.BARRED or access is LogAccess.RESTORING:
            return False
        if access is _AHEAD and (state is _OPEN or state is _HANDING_BACK):
            return self.last > 0 or (self.is_overdue and state is _OPEN)
        return state is not _HANDING_BACK and state is not LogState.DROPPED

    @property
    def is_all_logged(self) -> bool:
        """Tell whether the job may go back to the queue."""
        return self.state is _HANDING_BACK and self.turn is not Turn.IN_CALL and not self.wants_log

    def restore(
        self,
        events: Iterable[Event],
        tokenizer: PreTrainedTokenizerBase | ByteTable,
        chat: JobChat | None = None,
    ) -> None:
        """Begin from what earlier owners logged: text, stop state and which choices had ended.

        `chat` is how their log says that answers are read.
        """
        tokens = list(events)
        num_choices = 1 if self.rules is None else self.rules.num_choices
        if tokens:
            num_choices = max(num_choices, *(event.choice + 1 for event in tokens))
        own = None if self.rules is None else self.rules.chat
        if own is not None or chat is not None:
            args = own, chat, self.job_id, num_choices
            self.messages = told_messages(*args, is_new=not tokens)
        is_told = self.messages is not None and self.messages.is_told
        transcript = (ToldTranscript if is_told else Transcript)(self.job_id, num_choices)
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
            text = ChoiceText(tokenizer, rules.prompt_tail, params, rules.shown_ids)
            self.texts.append(text)
            if not tokens:
                continue
            ids = transcript.ids_of(choice)
            if not ids:
                continue
            # As the engine told it then: in a token that ended the choice no string is looked for.
            is_stop = ids[-1] in rules.stop_ids and len(ids) >= rules.min_tokens
            released = text.push(ids, stop_token_id=ids[-1] if is_stop else None)
            if is_stop or released.stopped_by is not None:
                self.reasons[choice] = FinishReason.STOP.value
            elif len(ids) >= rules.max_tokens:
                self.reasons[choice] = FinishReason.LENGTH.value

    def decide(self, reason: str, error: Failure | None = None) -> None:
        """Fix the outcome; what is not logged yet is logged before the terminal entry."""
        usage = Usage(self.prompt_tokens, self.cached_tokens, self.last)
        choices = tuple(choice or reason for choice in self.reasons)
        stops = self._stop_reasons()
        sampling = {} if self.rules is None else self.rules.sampling
        self.finish = Finish(reason, usage, error, choices, stop_reasons=stops, sampling=sampling)
        self.move_to(LogState.ENDING)

    def _stop_reasons(self) -> tuple[int | str | None, ...]:
        """Return per choice the stop string or stop id that ended it; empty where none did."""
        if FinishReason.STOP.value not in self.reasons:
            return ()
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
