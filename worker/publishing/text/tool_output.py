"""Tool calls, read from a job's text for its terminal event."""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from tokenbus.producer.contract.events import ToolCall

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tokenbus.engine.grammar.tool_reader import ToolReader

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Templates of the Mistral family refuse ids of any other length.
_ID_LENGTH = 9


def read_tool_calls(reader: ToolReader, job_id: str, texts: Iterable[str]) -> tuple[ToolCall, ...]:
    """Return the calls in the texts of a job's choices; every process finds the same."""
    calls: list[ToolCall] = []
    for choice, text in enumerate(texts):
        output = reader.parse(text)
        for number, call in enumerate(output.calls):
            call_id = _call_id(job_id, choice, number)
            calls.append(ToolCall(choice, call_id, call.name, call.arguments, len(output.content)))
    return tuple(calls)


def _call_id(job_id: str, choice: int, number: int) -> str:
    """Return nine letters and digits that no other call is likely to have."""
    digest = blake2b(f"{job_id}/{choice}/{number}".encode(), digest_size=8).digest()
    left = int.from_bytes(digest, "big")
    drawn = ""
    for _ in range(_ID_LENGTH):
        left, digit = divmod(left, len(_ALPHABET))
        drawn += _ALPHABET[digit]
    return drawn
