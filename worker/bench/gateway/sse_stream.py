"""One stream of the gateway, read off its socket: when each token came, and nothing else.

A token costs the reader a few microseconds, so that one process reads thousands of streams.
"""

from __future__ import annotations

import asyncio
import json
import time
from array import array
from typing import TYPE_CHECKING, Any

from tokenbus.worker.bench.gateway.messages import StreamTimes
from tokenbus.worker.bench.gateway.options import PROMPT_TOKENS

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.worker.bench.gateway.options import GatewayBenchOptions

_JOB_HEADER = b"x-tokenbus-job-id"
_DONE = b"data: [DONE]"


def request_of(options: GatewayBenchOptions, seed: int, num_tokens: int | None = None) -> bytes:
    """Return the request of a stream as it goes over the wire."""
    length = options.max_tokens if num_tokens is None else num_tokens
    body: dict[str, Any] = {"max_tokens": length, "stream": True, "seed": seed}
    if options.route == "chat":
        path = "/v1/chat/completions"
        body["messages"] = [{"role": "user", "content": "Hello!"}]
    else:
        path = "/v1/completions"
        body["prompt"] = [1] * PROMPT_TOKENS
    raw = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: gateway\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n"
    )
    return head.encode() + raw


class SseStream(asyncio.Protocol):
    """Sends a request and notes the cursors of its frames as they come.

    `on_job` is called with the id of the job, `ended` is set when nothing more comes.
    """

    def __init__(self, number: int, request: bytes, on_job: Callable[[int, str], None]) -> None:
        self.ended = asyncio.Event()
        self.opened = asyncio.Event()
        self._number = number
        self._request = request
        self._on_job = on_job
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._rest = b""
        self._has_head = False
        self._is_done = False
        self._cursors = array("I")
        self._times = array("d")
        self._asked_s = self._heard_s = time.monotonic()
        self._longest_silence_s = 0.0
        self._num_comments = 0
        self._fault: str | None = None

    def report(self) -> StreamTimes:
        """Return what came so far."""
        fault = self._fault
        if fault is None and not self._is_done:
            fault = f"no [DONE] after {len(self._cursors)} tokens"
        return StreamTimes(
            number=self._number,
            cursors=self._cursors.tobytes(),
            times=self._times.tobytes(),
            asked_s=self._asked_s,
            longest_silence_s=self._longest_silence_s,
            num_comments=self._num_comments,
            fault=fault,
        )

    def fail(self, told: str) -> None:
        """Note what is wrong and end."""
        self._fault = self._fault or told
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()
        self.opened.set()
        self.ended.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._asked_s = self._heard_s = time.monotonic()
        transport.write(self._request)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note an end that was not asked for."""
        if not self.ended.is_set():
            self.fail(f"the connection ended: {exc}")

    def data_received(self, data: bytes) -> None:
        """Take what came apart."""
        now = time.monotonic()
        self._longest_silence_s = max(self._longest_silence_s, now - self._heard_s)
        self._heard_s = now
        self._buffer = data if not self._buffer else self._buffer + data
        try:
            if self._has_head or self._read_head():
                self._read_chunks(now)
        except ValueError as error:
            self.fail(f"cannot be read: {error}")

    def _read_head(self) -> bool:
        """Read the headers, once they are there. Raises: ValueError where it is no stream."""
        head, end, rest = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return False
        status, *lines = head.split(b"\r\n")
        headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in lines)
        }
        is_stream = headers.get(b"transfer-encoding") == b"chunked" and b" 200 " in status
        if not is_stream:
            told = f"{status.decode(errors='replace')} {rest[:200].decode(errors='replace')}"
            raise ValueError(told)
        self._has_head, self._buffer = True, rest
        self._longest_silence_s = 0.0
        self._on_job(self._number, headers.get(_JOB_HEADER, b"").decode())
        self.opened.set()
        return True

    def _read_chunks(self, now: float) -> None:
        """Read the chunks that are whole. Raises: ValueError."""
        buffer, start = self._buffer, 0
        while (line := buffer.find(b"\r\n", start)) > 0:
            size = int(buffer[start:line], 16)
            end = line + 2 + size
            if len(buffer) < end + 2:
                break
            if not size:
                self._is_done = self._is_done and not self._rest
                self.close()
                return
            self._read_frames(buffer[line + 2 : end], now)
            start = end + 2
        self._buffer = buffer[start:]

    def _read_frames(self, body: bytes, now: float) -> None:
        """Read the frames that a chunk completes."""
        *frames, self._rest = (self._rest + body).split(b"\n\n")
        for frame in frames:
            lines = frame.split(b"\n")
            while lines and lines[0].startswith(b":"):
                self._num_comments += 1
                del lines[0]
            if lines and lines[0].startswith(b"id: "):
                self._cursors.append(int(lines[0].rpartition(b":")[2]))
                self._times.append(now)
            if lines and lines[-1] == _DONE:
                self._is_done = True
            elif b'"error":' in frame:
                self._fault = self._fault or frame.decode(errors="replace")
        while self._rest.startswith(b":") and (end := self._rest.find(b"\n")) > 0:
            self._num_comments += 1
            self._rest = self._rest[end + 1 :]
