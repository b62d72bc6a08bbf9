"""Riders: readers of streams who go on at any gateway after the last frame that they have."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import aiohttp
from gateways.doors import Door, Frame, frames_of
from workers.null_workers import expected_text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BROKEN = (OSError, aiohttp.ClientError)
_PAUSE_S = 0.05
CHOICES = 2


@dataclass
class Rider:
    """A reader of a chat's chunks, two choices of so many tokens each."""

    path: ClassVar[str] = "/v1/chat/completions"

    seed: int
    num_tokens: int
    frames: list[Frame] = field(default_factory=list)
    is_done: bool = False
    num_breaks: int = 0

    @property
    def body(self) -> dict[str, Any]:
        """Return what is asked for."""
        return {
            "messages": [{"role": "user", "content": "hi"}],
            "max_tokens": self.num_tokens,
            "n": CHOICES,
            "seed": self.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    @property
    def num_frames(self) -> int:
        """Return about how many frames there will be."""
        return CHOICES * self.num_tokens

    @property
    def whole(self) -> str:
        """Return the path of the whole stream, once its first frame is there."""
        return f"/v1/jobs/{self._job_id}/stream"

    @property
    def _job_id(self) -> str:
        return str(self.frames[-1].id).partition(":")[0]

    def resume(self) -> tuple[str, dict[str, str]]:
        """Return the path and headers of the rest."""
        return self.whole, {"Last_Event_ID": str(self.frames[-1].id)}

    def is_end(self, frame: Frame) -> bool:
        """Tell whether nothing but `[DONE]` is left to come behind a frame."""
        return not frame.json["choices"]

    async def ride(self, next_door: Callable[[], Door]) -> None:
        """Read until the end."""
        while not self.is_done:
            try:
                await self._read(next_door())
            except BROKEN:
                await asyncio.sleep(_PAUSE_S)
            self.num_breaks += not self.is_done

    async def _read(self, running: Door) -> None:
        if self.frames:
            path, named = self.resume()
            opened = running.open("GET", path, None, **named)
        else:
            # A submit whose answer was lost is repeated, and is the same job.
            named = {"Idempotency_Key": f"{type(self).__name__}-{self.seed}"}
            opened = running.open("POST", self.path, self.body, **named)
        async with opened as response:
            if response.status != 200:
                await response.read()
                await asyncio.sleep(_PAUSE_S)
                return
            async for frame in frames_of(response):
                # An error of the gateway's own has no place in the stream: the rest is to come.
                if frame.data and frame.data != "[DONE]" and frame.id is not None:
                    self.frames.append(frame)
                    self.is_done = self.is_done or self.is_end(frame)

    async def check(self, running: Door) -> None:
        """Check that each frame came once, and is that of the unbroken stream."""
        unbroken = await running.get(self.whole)
        expected = [(frame.id, frame.data) for frame in unbroken.data_frames]
        if expected[-1][1] == "[DONE]":
            expected.pop()
        assert [(frame.id, frame.data) for frame in self.frames] == expected
        self.check_content()

    def check_content(self) -> None:
        """Check that the frames say what the engine says unbroken."""
        chunks = [frame.json for frame in self.frames]
        assert len({(chunk["id"], chunk["created"]) for chunk in chunks}) == 1
        assert chunks[-1]["usage"]["completion_tokens"] == CHOICES * self.num_tokens
        for number in range(CHOICES):
            deltas = [
                choice["delta"].get("content") or ""
                for chunk in chunks
                for choice in chunk["choices"]
                if choice["index"] == number
            ]
            assert "".join(deltas) == expected_text(self.seed, self.num_tokens, number)


class ResponseRider(Rider):
    """A reader of the events of a response in the background."""

    path: ClassVar[str] = "/v1/responses"

    @property
    def body(self) -> dict[str, Any]:
        """Return what is asked for."""
        asked = {"input": "hi", "max_output_tokens": self.num_tokens, "seed": self.seed}
        return asked | {"stream": True, "background": True}

    @property
    def num_frames(self) -> int:
        """Return about how many frames there will be."""
        return self.num_tokens

    @property
    def whole(self) -> str:
        """Return the path of the whole stream, once its first frame is there."""
        return f"{self.told}?stream=true"

    @property
    def told(self) -> str:
        """Return the path of the response."""
        return f"/v1/responses/{self.frames[0].json['response']['id']}"

    def resume(self) -> tuple[str, dict[str, str]]:
        """Return the path and headers of the rest."""
        return f"{self.whole}&starting_after={self.frames[-1].id}", {}

    def is_end(self, frame: Frame) -> bool:
        """Tell whether nothing is left to come behind a frame."""
        kinds = ("response.completed", "response.incomplete", "response.failed")
        return frame.event in kinds

    def check_content(self) -> None:
        """Check that the events say what the engine says unbroken."""
        events = [frame.json for frame in self.frames]
        assert [event["sequence_number"] for event in events] == list(range(len(events)))
        assert "".join(self._deltas(events)) == expected_text(self.seed, self.num_tokens)
        assert events[-1]["response"]["usage"]["output_tokens"] == self.num_tokens

    def _deltas(self, events: list[Any]) -> Iterator[str]:
        for event in events:
            if event["type"] == "response.output_text.delta":
                yield event["delta"]
