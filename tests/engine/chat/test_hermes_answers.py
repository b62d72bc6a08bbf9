"""The reader on tagged JSON with a thought before it, cut everywhere."""

from __future__ import annotations

from tokenbus.engine.chat.chat_format import FORMATS
from tokenbus.engine.chat.message_reader import MessageReader

ANSWER = (
    "<think>\nIs </thin the end?\n</think>\n\nLooking.\n"
    '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln", "days": [1, {"a": null}]}}\n'
    '</tool_call>\n<tool_call>\n{"arguments": {}, "name": "clock"}\n</tool_call>'
)


def test_answer_is_taken_apart_wherever_it_is_cut() -> None:
    """Thought, content and two calls come out the same, and no mark with them."""
    for cut in range(len(ANSWER)):
        reader = MessageReader(
            FORMATS["qwen3"],
            {"weather": {}, "clock": {}},
            starts_in_reasoning=False,
            call_id="call{}".format,
        )
        deltas = [reader.push(ANSWER[:cut]), reader.push(ANSWER[cut:]), reader.finish()]
        message = reader.message
        assert message.content == "".join(delta.content for delta in deltas) == "Looking."
        assert message.reasoning == "".join(delta.reasoning for delta in deltas)
        assert message.reasoning == "Is </thin the end?"
        assert [(call.id, call.name, call.arguments) for call in message.complete_calls] == [
            ("call0", "weather", '{"city": "Köln", "days": [1, {"a": null}]}'),
            ("call1", "clock", "{}"),
        ]
