"""The messages of a job: the texts of its choices, read token by token as they grow.

Every process that reads the same tokens finds the same deltas, however many tokens come at once:
they are read one by one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.delta import MessageDelta
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.producer.contract.messages.answer_message import AnswerMessage
from tokenbus.producer.contract.messages.call_ids import call_id
from tokenbus.producer.contract.messages.wire_delta import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.chat.chat_format import ChatFormat
    from tokenbus.producer.contract.messages.job_chat import JobChat

_NOTHING = MessageDelta()


class JobMessages:
    """Reads the answers of one job; choices begin as their first tokens come."""

    __slots__ = ("_address", "_choices", "_format", "chat")

    def __init__(self, chat: JobChat, address: str, num_choices: int = 1) -> None:
        """Begin before the first token.

        Args:
            address: text of the job's address, of which the ids of calls are made.
        Raises: KeyError if this release does not know the chat format.
        """
        self.chat = chat
        self._format = format_named(chat.format)
        self._address = address
        self._choices = [self._begun(choice) for choice in range(num_choices)]

    @property
    def num_choices(self) -> int:
        """Count the choices."""
        return len(self._choices)

    @property
    def reasoning_tokens(self) -> int:
        """Count the tokens of all choices that were reasoning.

        A token is reasoning if the text that it brings is, or, where it brings none, the text that
        comes next: so the mark that opens a block counts, and the one that closes it does not.
        """
        return sum(each.num_reasoning for each in self._choices)

    def num_read(self, choice: int) -> int:
        """Count the tokens of a choice that were read."""
        return self._choice(choice).num_tokens

    def restart(self, choice: int) -> None:
        """Begin a choice anew."""
        self._choice(choice)
        self._choices[choice] = self._begun(choice)

    def read(self, choice: int, text: str, ends: Sequence[int]) -> MessageDelta:
        """Read the next tokens of a choice and return what they add to its message.

        Args:
            text: text that the tokens have released.
            ends: per token the end of its text, in characters since the start of the choice.
        """
        return self._choice(choice).read(text, ends)

    def finish(self) -> tuple[MessageDelta, ...]:
        """End all answers; return per choice what was held back. Safe to repeat."""
        return tuple(each.finish() for each in self._choices)

    def message(self, choice: int) -> AnswerMessage:
        """Return the message of a choice as far as it was read."""
        return AnswerMessage.of(self._choice(choice).reader.message)

    def calls_at(self, choice: int, text: str) -> int:
        """Return where the answer's own words before its calls end, in characters of its text.

        It is for readers of releases without messages: to them what stands before is content.
        """
        read, message = self._choice(choice), self.message(choice)
        content = message.content[: read.num_before_calls]
        words = content or message.reasoning
        return text.find(words) + len(words) if words in text else 0

    def _choice(self, choice: int) -> _ReadChoice:
        while choice >= len(self._choices):
            self._choices.append(self._begun(len(self._choices)))
        return self._choices[choice]

    def _begun(self, choice: int) -> _ReadChoice:
        return _ReadChoice(self._format, self.chat, partial(call_id, self._address, choice))


class _ReadChoice:
    """One choice on its way."""

    __slots__ = (
        "_has_called",
        "_num_pending",
        "_tail",
        "num_before_calls",
        "num_reasoning",
        "num_tokens",
        "reader",
    )

    def __init__(self, chat_format: ChatFormat, chat: JobChat, named: partial[str]) -> None:
        self.reader = MessageReader(
            chat_format, chat.tools, starts_in_reasoning=chat.starts_in_reasoning, call_id=named
        )
        self.num_tokens = self.num_reasoning = 0
        # Tokens at the end that have brought no text of the message yet.
        self._num_pending = 0
        self._tail: MessageDelta | None = None
        # Characters of the content before the first call.
        self.num_before_calls = 0
        self._has_called = False

    def read(self, text: str, ends: Sequence[int]) -> MessageDelta:
        self.num_tokens += len(ends)
        if len(ends) == 1:
            return self._push(text) if text else self._pend()
        low, start = 0, ends[-1] - len(text)
        deltas = []
        for end in ends:
            high = end - start
            deltas.append(self._push(text[low:high]) if high > low else self._pend())
            low = high
        return joined(deltas)

    def _pend(self) -> MessageDelta:
        self._num_pending += 1
        return _NOTHING

    def _push(self, piece: str) -> MessageDelta:
        delta = self.reader.push(piece)
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
        if self._tail is None:
            self._tail = self.reader.finish()
            if self._tail.reasoning:
                self.num_reasoning += self._num_pending
                self._num_pending = 0
        return self._tail
