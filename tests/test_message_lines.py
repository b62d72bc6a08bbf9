"""What a person sees of messages: content, a line for each call, reasoning apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenbus.producer.commands.message_lines import MessageLines
from tokenbus.producer.contract.events import Event, Finish, told
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.messages.job_messages import JobMessages

if TYPE_CHECKING:
    import pytest


def events_of(text: str) -> list[Event]:
    """Spell a text in tokens of a character."""
    tokens = [Event("j", 1, 0, at, at, each, (1,), (at,)) for at, each in enumerate(text, 1)]
    return [*tokens, Event("j", 1, 0, len(text) + 1, len(text), finish=Finish("stop"))]


def test_content_calls_and_reasoning_are_printed_apart(capsys: pytest.CaptureFixture[str]) -> None:
    """A call is one line, whatever is in it; one that was cut says so."""
    call = '<tool_call>\n{"name": "now", "arguments": {"town":  "Os\\nlo"}}\n</tool_call>'
    text = f"<think>\nWell\x1b.\n</think>\n\nI look.\n{call}\n{call[:50]}"
    lines = MessageLines(is_safe=True)
    for event in told(events_of(text), JobMessages(JobChat("qwen3", {"now": {}}), "j")):
        lines.print(event)
    shown = capsys.readouterr()
    assert shown.out == 'I look.\nnow({"town": "Os\\nlo"})\nnow({"town":  …)\n'
    assert shown.err == "Well\\u001b.\n"


def test_answer_without_messages_is_its_text(capsys: pytest.CaptureFixture[str]) -> None:
    """With what a terminal would obey escaped, where it may be another's."""
    for is_safe, expected in ((True, "a\x1bb\n"), (False, "a\\u001bb\n")):
        lines = MessageLines(is_safe=is_safe)
        for event in events_of("a\x1bb"):
            lines.print(event)
        assert capsys.readouterr().out == expected
