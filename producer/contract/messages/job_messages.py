"""The messages of a job: the texts of its choices, read token by token as they grow.

Every process that reads the same tokens finds the same deltas, however many tokens come at once:
they are read one by one.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from tokenbus.engine.chat.answer_reader import AnswerReader
from tokenbus.engine.chat.call_ids import call_id
from tokenbus.producer.contract.messages.answer_message import AnswerMessage
from tokenbus.producer.contract.messages.wire_delta import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.chat.delta import MessageDelta
    from tokenbus.producer.contract.messages.job_chat import JobChat


class JobMessages:
    """Reads the answers of one job; choices begin as their first tokens come."""

    __slots__ = ("_address", "_choices", "chat")

    def __init__(self, chat: JobChat, address: str, num_choices: int = 1) -> None:
        """Begin before the first token.

        Args:
            address: text of the job's address, of which the ids of calls are made.
        Raises: KeyError if this release does not know the chat format.
        """
        self.chat = chat
        self._address = address
        self._choices = [self._begun(choice) for choice in range(num_choices)]

    @property
    def num_choices(self) -> int:
        """Count the choices."""
        return len(self._choices)

    @property
    def reasoning_tokens(self) -> int:
        """Count the tokens of all choices that were reasoning (`AnswerReader` has the rule)."""
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
        read = self._choice(choice)
        # The short way of a reader that hears each token.
        return read.read_token(text) if len(ends) == 1 else joined(read.read(text, ends))

    def finish(self) -> tuple[MessageDelta, ...]:
        """End all answers; return per choice what was held back. Safe to repeat."""
        return tuple(each.finish() for each in self._choices)

    def message(self, choice: int) -> AnswerMessage:
        """Return the message of a choice as far as it was read."""
        return AnswerMessage.of(self._choice(choice).message)

    def calls_at(self, choice: int, text: str) -> int:
        """Return where the answer's own words before its calls end, in characters of its text.

        It is for readers of releases without messages: to them what stands before is content.
        """
        read, message = self._choice(choice), self.message(choice)
        content = message.content[: read.num_before_calls]
        words = content or message.reasoning
        return text.find(words) + len(words) if words in text else 0

    def _choice(self, choice: int) -> AnswerReader:
        while choice >= len(self._choices):
            self._choices.append(self._begun(len(self._choices)))
        return self._choices[choice]

    def _begun(self, choice: int) -> AnswerReader:
        return AnswerReader(self.chat, partial(call_id, self._address, choice))
