"""The reader of an answer token by token: its message as it grows, and how much is reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.delta import MessageDelta
from tokenbus.engine.chat.message_reader import MessageReader

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tokenbus.engine.chat.answer_form import AnswerForm
    from tokenbus.engine.chat.written_message import WrittenMessage

_NOTHING = MessageDelta()


class AnswerReader:
    """One answer on its way; every reader of the same tokens finds the same message.

    num_tokens: tokens that were read.
    num_reasoning: those that were reasoning. A token is if the text that it brings is, or, where
        it brings none, the text that comes next: so the mark that opens a block counts, and the
        one that closes it does not.
    num_before_calls: characters of the content before the first call.
    """

    __slots__ = (
        "_has_called",
        "_num_pending",
        "_reader",
        "_tail",
        "num_before_calls",
        "num_reasoning",
        "num_tokens",
    )

    def __init__(self, form: AnswerForm, call_id: Callable[[int], str]) -> None:
        """Begin before the first token.

        Args:
            call_id: makes the id of a call from its index.
        Raises: KeyError if there is no chat format of that name.
        """
        self._reader = MessageReader(
            format_named(form.format),
            form.tools,
            starts_in_reasoning=form.starts_in_reasoning,
            call_id=call_id,
        )
        self.num_tokens = self.num_reasoning = self.num_before_calls = 0
        # Tokens at the end that have brought no text of the message yet.
        self._num_pending = 0
        self._tail: MessageDelta | None = None
        self._has_called = False

    @property
    def message(self) -> WrittenMessage:
        """Return the message as far as it was read."""
        return self._reader.message

    def read(self, text: str, ends: Sequence[int]) -> list[MessageDelta]:
        """Read the next tokens; return what each adds.

        Args:
            text: text that the tokens have released.
            ends: per token the end of its text, in characters since the start of the answer.
        """
        if len(ends) == 1:
            return [self.read_token(text)]
        low, start = 0, ends[-1] - len(text)
        deltas = []
        for end in ends:
            high = end - start
            deltas.append(self.read_token(text[low:high] if high > low else ""))
            low = high
        return deltas

    def read_token(self, piece: str) -> MessageDelta:
        """Read the next token, with the text that it has released."""
        self.num_tokens += 1
        if not piece:
            self._num_pending += 1
            return _NOTHING
        delta = self._reader.push(piece)
        if not self._has_called:
            self.num_before_calls += len(delta.content)
            self._has_called = bool(delta.calls)
        if delta.reasoning:
            self.num_reasoning += self._num_pending + 1
            self._num_pending = 0
        elif delta:
            self._num_pending = 0
        else:
            self._num_pending += 1
        return delta

    def finish(self) -> MessageDelta:
        """End the answer and return what was held back. Safe to repeat."""
        if self._tail is None:
            self._tail = self._reader.finish()
            if self._tail.reasoning:
                self.num_reasoning += self._num_pending
                self._num_pending = 0
        return self._tail
