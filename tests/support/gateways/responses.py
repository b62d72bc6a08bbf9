"""Responses for tests: requests of their own, and what their events say."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateways.doors import Told

PATH = "/v1/responses"


def body(**fields: Any) -> dict[str, Any]:
    """Return a request of its own."""
    seed = uuid.uuid4().int % 2**31
    return {"input": "Where is my order?", "max_output_tokens": 12, "seed": seed} | fields


def told_events(told: Told) -> list[dict[str, Any]]:
    """Return the events of a stream; numbers without a gap, names as in the data, one end."""
    events: list[dict[str, Any]] = [frame.json for frame in told.data_frames]
    first = events[0]["sequence_number"]
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(first, first + len(events)))
    assert [frame.event for frame in told.data_frames] == [event["type"] for event in events]
    return events


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Put the output together from the deltas alone, as a client does."""
    output: list[dict[str, Any]] = []
    for event in events:
        match event["type"]:
            case "response.output_item.added":
                assert event["output_index"] == len(output)
                output.append({"text": "", "item": event["item"]})
            case "response.output_text.delta" | "response.function_call_arguments.delta":
                output[event["output_index"]]["text"] += event["delta"]
            case "response.reasoning_text.delta":
                output[event["output_index"]]["text"] += event["delta"]
            case "response.output_item.done":
                output[event["output_index"]]["done"] = event["item"]
    return output


def text_of(item: dict[str, Any]) -> str:
    """Return the text of an output item."""
    return str(item["arguments"] if "arguments" in item else item["content"][0]["text"])
