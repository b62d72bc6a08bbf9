"""The messages of a job as its publisher tells them: deltas beside tokens, and the end.

Jobs whose answers are no messages have none of it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from tokenbus.producer.contract.events import closed, messages_of
from tokenbus.producer.contract.messages.wire_delta import delta_json, end_json
from tokenbus.worker.publishing.text.transcript import Transcript

if TYPE_CHECKING:
    from tokenbus.producer.contract.events import Finish
    from tokenbus.producer.contract.messages.job_chat import JobChat
    from tokenbus.producer.contract.messages.job_messages import JobMessages
    from tokenbus.worker.publishing.text.transcript import Slice


class ToldTranscript(Transcript):
    """A transcript whose every entry is packed with a delta, a single token too."""

    def newest(self) -> None:
        """Leave no token to the short way, which knows no deltas."""


class ToldMessages:
    """Reads a job's answers as its entries are packed.

    `is_told`: events have deltas, and the end says how answers are read. A log that an owner of an
    earlier release has begun goes on without them; its calls are read for the end alone.
    """

    def __init__(self, messages: JobMessages, *, is_told: bool) -> None:
        self._messages = messages
        self.is_told = is_told
        # What reading has taken.
        self.busy_s = 0.0

    @property
    def chat(self) -> str:
        """Return what the log's marker says of it."""
        return self._messages.chat.dump() if self.is_told else ""

    def delta(self, transcript: Transcript, entry: Slice) -> str:
        """Return the JSON object of what an entry adds to the message of its choice; "" if untold.

        An entry that is packed again (its call failed, or the log has lost it) is read again.
        """
        if not self.is_told:
            return ""
        began_at = time.perf_counter()
        choice, start, text, _, ends, _ = entry
        self._read_up_to(transcript, choice, transcript.place_of(start))
        delta = delta_json(self._messages.read(choice, text, ends))
        self.busy_s += time.perf_counter() - began_at
        return delta

    def close(self, transcript: Transcript, finish: Finish) -> tuple[Finish, str]:
        """Return the finish with calls and counts, and what the terminal event tells beside."""
        began_at = time.perf_counter()
        choices = range(transcript.num_choices)
        for choice in choices:
            self._read_up_to(transcript, choice, transcript.num_tokens(choice))
        held_back = self._messages.finish()
        whole = closed(finish, self._messages, [transcript.text_of(choice) for choice in choices])
        self.busy_s += time.perf_counter() - began_at
        if not self.is_told:
            return replace(whole, chat=None, usage=finish.usage), ""
        return whole, end_json(held_back)

    def _read_up_to(self, transcript: Transcript, choice: int, num_tokens: int) -> None:
        num_read = self._messages.num_read(choice)
        if num_read > num_tokens:
            self._messages.restart(choice)
            num_read = 0
        if num_read < num_tokens:
            text, ends = transcript.part_of(choice, num_read, num_tokens)
            self._messages.read(choice, text, ends)


def told_messages(
    own: JobChat | None, logged: JobChat | None, address: str, num_choices: int, *, is_new: bool
) -> ToldMessages | None:
    """Return what reads a job's answers, None where they are no messages.

    Args:
        own: how this worker would read them.
        logged: how the log says they are read; None where it does not.
        is_new: nothing is logged, so that this owner says how.
    """
    messages = messages_of(own if is_new else logged, address, num_choices)
    if messages is not None:
        return ToldMessages(messages, is_told=True)
    messages = messages_of(own, address, num_choices)
    return None if messages is None else ToldMessages(messages, is_told=False)
