"""Frames of an answer: what a stream of chunks sends, each with the cursor from which it resumes.

Every frame follows from the tokens of the jobs alone, so any door writes the same ones again: those
up to the reader's cursor are written and not sent. The cursor of a token's frame is the token's
index; the frames of the end have the numbers that follow. Where there are several prompts, it has
a number for each, and one for what belongs to all.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from json.encoder import encode_basestring_ascii as quoted
from typing import TYPE_CHECKING, Any, Protocol

from tokenbus.producer.contract.events import FINISHED_REASONS
from tokenbus.producer.gateway.jobs.token_steps import TokenSteps
from tokenbus.producer.gateway.pools.vocabulary import alternatives_of
from tokenbus.producer.gateway.wire import sse
from tokenbus.producer.gateway.wire.chat_chunks import ChatChunks
from tokenbus.producer.gateway.wire.completion_chunks import CompletionChunks
from tokenbus.producer.gateway.wire.finished import ending_of
from tokenbus.producer.gateway.wire.logprob_forms import NO_TEXTS
from tokenbus.producer.gateway.wire.refusals import of_finish
from tokenbus.producer.gateway.wire.usage import summed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from tokenbus.engine.chat.usage import Usage
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.gateway.jobs.chunk_writer import ChunkWriter
    from tokenbus.producer.gateway.jobs.stream_form import StreamForm
    from tokenbus.producer.gateway.jobs.submitted_job import SubmittedJob
    from tokenbus.producer.gateway.jobs.token_steps import TokenStep
    from tokenbus.producer.gateway.pools.vocabulary import Vocabulary
    from tokenbus.producer.gateway.wire.api_error import ApiError

# Frames that several prompts have ready, before those who write them wait.
_MAX_READY = 256


class EventSource(Protocol):
    """The events of one job, from the first on."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """Return the iterator."""

    def hand_to(self, take: Callable[[Event], bool]) -> None:
        """Offer live events to `take` first, as `EventStream.hand_to`."""

    async def aclose(self) -> None:
        """End it."""


def chunks_of(form: StreamForm) -> ChatChunks | CompletionChunks:
    """Return what writes the chunks of a stream of this form."""
    kind = ChatChunks if form.kind == "chat" else CompletionChunks
    return kind(
        with_logprobs=form.with_logprobs,
        wire_id=form.wire_id,
        created=form.created,
        model=form.model,
        tier=form.tier,
        with_usage=form.with_usage,
        with_continuous_usage=form.with_continuous_usage,
    )


class AnswerFrames:
    """Writes the frames of one stream; `usages` has those of the jobs that have ended."""

    def __init__(
        self,
        form: StreamForm,
        jobs: Sequence[SubmittedJob],
        events: Sequence[EventSource],
        after: Sequence[int] = (),
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """Begin after a cursor: a number for each job, and one for what belongs to all.

        `vocabulary` tells the texts of alternatives, where there are logprobs.
        """
        self._form = form
        self._jobs = jobs
        self._events = events
        self._chunks = chunks_of(form)
        self._vocabulary = vocabulary if form.with_logprobs else None
        self._after = list(after) or [0] * self._num_cursors
        # How far each job was told, and what belongs to all; who reads on begins there.
        self._at = list(self._after)
        self._num_tokens = 0
        self._writer: ChunkWriter | None = None
        # Of each choice what stands around its content in a frame, behind the cursor.
        self._around: dict[int, tuple[str, str]] = {}
        self.usages: list[Usage] = []
        self.error: ApiError | None = None

    @property
    def _num_cursors(self) -> int:
        return len(self._jobs) + (len(self._jobs) > 1)

    def write_to(self, writer: ChunkWriter) -> None:
        """Let tokens that come while `frames` is waited for go to `writer`, where that is the same.

        What `frames` has yielded must be on its way before it is asked for more.
        """
        if len(self._jobs) == 1 and not self._form.with_logprobs:
            self._writer = writer

    async def frames(self) -> AsyncGenerator[bytes, None]:
        """Yield frames as they come, those that are ready at once together, `[DONE]` last.

        Raises: ProducerError where the jobs cannot be read on.
        """
        if len(self._jobs) == 1:
            async for part in self._job(0):
                if part:
                    yield part
        else:
            async with aclosing(self._together()) as parts:
                async for part in parts:
                    yield part
        yield self._end() + sse.DONE

    async def _together(self) -> AsyncGenerator[bytes, None]:
        """Yield the frames of all jobs as they come."""
        ready: asyncio.Queue[bytes | None] = asyncio.Queue(_MAX_READY)

        async def write(number: int) -> None:
            async for part in self._job(number):
                if part:
                    await ready.put(part)

        async def write_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for number in range(len(self._jobs)):
                        group.create_task(write(number))
            except asyncio.CancelledError:
                # Nobody reads any more, and what is full stays so.
                raise
            except BaseException:
                await ready.put(None)
                raise
            await ready.put(None)

        writing = asyncio.create_task(write_all())
        try:
            while (part := await ready.get()) is not None:
                yield part
            await writing
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            writing.cancel()

    async def _job(self, number: int) -> AsyncGenerator[bytes, None]:
        """Yield the frames of one job."""
        job = self._jobs[number]
        steps = TokenSteps(job.client, job.job_id, job.tenant)
        after = self._after[number]
        head = f"id: {self._form.jobs[0]}:"
        is_counted = not self._form.with_continuous_usage
        if is_counted:
            self._hand_over(number, steps, head, after)
        async for event in self._events[number]:
            if event.finish is not None:
                if not is_counted:
                    self._chunks.count_prompt(event.finish.usage.prompt_tokens)
                yield self._job_end(number, event)
                return
            if not is_counted:
                # Of the first chunk on; what comes later needs to ask for nothing.
                self._chunks.count_prompt(await steps.prompt_tokens())
                self._hand_over(number, steps, head, after)
                is_counted = True
            texts = NO_TEXTS
            if self._vocabulary is not None:
                texts = await self._vocabulary.texts(alternatives_of(event.logprobs))
            yield self._told(number, head, await steps.of(event), texts)

    def _hand_over(self, number: int, steps: TokenSteps, head: str, after: int) -> None:
        """Let tokens that are heard while they are waited for go to the writer, if there is one."""
        if self._writer is not None:
            self._events[number].hand_to(self._taker(self._writer, steps, head, after))

    def _told(
        self, number: int, head: str, steps: Sequence[TokenStep], texts: Mapping[int, str]
    ) -> bytes:
        """Return the frames of tokens of one job."""
        told: list[str] = []
        base, after = number * self._form.n, self._after[number]
        for step in steps:
            self._num_tokens += 1
            chunk = self._chunks.token(
                base + step.choice,
                step.delta,
                step.text,
                self._num_tokens,
                step.token_id,
                step.entry,
                step.end - len(step.text),
                texts,
            )
            if chunk is None or step.cursor <= after:
                continue
            self._at[number] = step.cursor
            cursor = step.cursor if len(self._jobs) == 1 else self._cursor()
            told.append(f"{head}{cursor}\ndata: {chunk}\n\n")
        return "".join(told).encode()

    def _taker(
        self, writer: ChunkWriter, steps: TokenSteps, head: str, after: int
    ) -> Callable[[Event], bool]:
        """Return what writes events of the only job where they are heard.

        It leaves what has to be asked for, what the reader has, and all while the reader is slow. A
        token of content is written into what its frames have in common.
        """
        around, at, is_chat = self._around, self._at, self._form.kind == "chat"

        def take(event: Event) -> bool:
            if not writer.is_ready or event.start <= after:
                return False
            common = around.get(event.choice) or self._common(event.choice)
            content = None
            if common is not None and (is_chat or event.told is None):
                content = steps.content_of(event)
            if common is None or content is None:
                several = steps.at_once(event)
                if several is None:
                    return False
                body = self._told(0, head, several, NO_TEXTS)
                if body:
                    writer.write(body)
                return True
            self._num_tokens += 1
            if content:
                at[0] = event.to
                writer.write(f"{head}{event.to}{common[0]}{quoted(content)}{common[1]}".encode())
            return True

        return take

    def _common(self, choice: int) -> tuple[str, str] | None:
        """Return what stands around the content of a choice in a frame, once that is settled."""
        found = self._chunks.around(choice)
        if found is None:
            return None
        common = self._around[choice] = f"\ndata: {found[0]}", f"{found[1]}\n\n"
        return common

    def _job_end(self, number: int, event: Event) -> bytes:
        """Return the frames of the end of one job."""
        finish, base, chunks = event.finish, number * self._form.n, self._chunks
        assert finish is not None
        self.usages.append(finish.usage)
        tails = [
            chunks.tail(base + choice, delta, self._num_tokens) for choice, delta in event.deltas
        ]
        told: list[str | bytes] = [tail for tail in tails if tail]
        if finish.reason in FINISHED_REASONS:
            told += [
                chunks.end(base + choice, ending_of(finish, choice), self._num_tokens)
                for choice in range(self._form.n)
            ]
        else:
            self.error = self.error or of_finish(finish, self._form.names[number])
        return self._numbered(number, event.to, told)

    def _end(self) -> bytes:
        """Return the frames of the end of all."""
        if self.error is not None:
            told: Any = [sse.error_body(self.error)]
        else:
            told = [self._chunks.usage(summed(self.usages))] if self._form.with_usage else []
        if len(self._jobs) == 1:
            return self._numbered(0, self._last, told)
        return self._numbered(len(self._jobs), 0, told)

    _last = 0

    def _numbered(self, place: int, last: int, told: Sequence[str | bytes]) -> bytes:
        """Return frames with the numbers after `last` at one place of the cursor."""
        frames = []
        for index, chunk in enumerate(told, last + 1):
            if index <= self._after[place]:
                continue
            self._at[place] = index
            frames.append(sse.data_frame(chunk, cursor=f"{self._form.jobs[0]}:{self._cursor()}"))
        self._last = last + len(told)
        return b"".join(frames)

    def _cursor(self) -> str:
        return ",".join(map(str, self._at))
