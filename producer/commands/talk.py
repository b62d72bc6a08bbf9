"""A talk with a model in a terminal: what was said so far, and one answer at a time."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import uuid
from typing import TYPE_CHECKING, Any

from tokenbus.producer.commands.hints import tell
from tokenbus.producer.commands.message_lines import MessageLines
from tokenbus.producer.contract.result import JobCancelled, JobEndedEarly
from tokenbus.producer.errors import ProducerError, QueueFull, RequestInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from tokenbus.producer.client.blocking import Client
    from tokenbus.producer.contract.result import JobResult

HELP = "/reset forgets the talk, /exit or Ctrl-D ends it, Ctrl-C stops an answer"


class Talk:
    """The turns of one conversation; each question is a job with all turns before it.

    `request` has the fields that all jobs share. An answer that was stopped stays in the history as
    far as it came; a question that got none leaves it.
    """

    def __init__(self, client: Client, request: Mapping[str, Any], system: str | None) -> None:
        self._client = client
        self._request = dict(request)
        self._system = [{"role": "system", "content": system}] if system else []
        self._turns: list[dict[str, Any]] = []

    def run(self, lines: Iterable[str]) -> int:
        """Answer every line until the last or `/exit`; return 0 if all got answers, else 1."""
        code = 0
        for line in lines:
            text = line.strip()
            if text in ("/exit", "/quit", "/bye"):
                break
            if not text or self._is_order(text):
                continue
            if not self.ask(text.removeprefix("/") if text.startswith("//") else text):
                code = 1
        return code

    def ask(self, text: str) -> bool:
        """Stream the answer to one question; return False if there was none.

        Raises: ProducerError where the server is away.
        """
        self._turns.append({"role": "user", "content": text})
        try:
            result = self._answer()
        except JobCancelled as stopped:
            # Its reader asked for that.
            result = stopped.result
            tell("stopped")
        except JobEndedEarly as early:
            self._turns.pop()
            tell(str(early))
            return False
        except (RequestInvalid, QueueFull) as refused:
            self._turns.pop()
            tell(str(refused))
            return False
        message = result.message.dump()
        if message.get("content") or message.get("tool_calls"):
            self._turns.append(message)
        else:
            self._turns.pop()
        return True

    def _is_order(self, text: str) -> bool:
        """Carry out a line that begins with a slash; two of them begin a question."""
        if not text.startswith("/") or text.startswith("//"):
            return False
        if text == "/reset":
            self._turns.clear()
            tell("the talk begins anew")
        else:
            known = text in ("/help", "/?")
            tell(HELP if known else f"no such order; {HELP}; // begins a question with /")
        return True

    def _answer(self) -> JobResult:
        """Submit the turns and print the answer while it grows. Raises: as `Client.result`."""
        job_id = f"chat-{uuid.uuid4().hex}"
        lines = MessageLines(is_safe=not sys.stdout.isatty())
        with self._stopped_by_interrupt(job_id) as is_stopped:
            messages = [*self._system, *self._turns]
            job = self._client.submit(id=job_id, messages=messages, **self._request)
            if is_stopped.is_set():
                # Asked for before the server knew the job.
                self._client.cancel(job)
            for event in self._client.stream(job):
                lines.print(event)
            return self._client.result(job)

    @contextlib.contextmanager
    def _stopped_by_interrupt(self, job_id: str) -> Iterator[threading.Event]:
        """Let Ctrl-C cancel the job in place of ending the process; the second one ends it."""
        is_stopped = threading.Event()

        def cancel() -> None:
            with contextlib.suppress(ProducerError):
                self._client.cancel(job_id)

        def on_interrupt(*_: object) -> None:
            if is_stopped.is_set():
                raise KeyboardInterrupt
            is_stopped.set()
            threading.Thread(target=cancel, daemon=True).start()

        before = signal.signal(signal.SIGINT, on_interrupt)
        try:
            yield is_stopped
        finally:
            signal.signal(signal.SIGINT, before)
