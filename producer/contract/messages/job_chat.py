"""The chat of a job: how its answers are written, as its worker tells it to every reader."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from tokenbus.engine.chat.answer_form import AnswerForm


@dataclass(frozen=True, slots=True)
class JobChat(AnswerForm):
    """How the answers of a job are read as messages, in the JSON of logs and results."""

    def dump(self) -> str:
        """Return the JSON object that stands in logs and results."""
        return _encode(self).decode()

    @classmethod
    def parse(cls, text: bytes | str) -> JobChat | None:
        """Read what `dump` wrote; None for what is no chat."""
        try:
            return _decode(text)
        except msgspec.MsgspecError:
            return None

    @classmethod
    def of_wire(cls, wire: object) -> JobChat | None:
        """Read the same where it was decoded already."""
        try:
            return msgspec.convert(wire, JobChat)
        except msgspec.ValidationError:
            return None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(JobChat).decode
