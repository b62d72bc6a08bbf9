"""The answers of one offline call: tokens become text, and text becomes messages."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from tokenbus.engine.chat.answer_reader import AnswerReader
from tokenbus.engine.chat.call_ids import call_id
from tokenbus.engine.containment import Containment
from tokenbus.engine.errors import GrammarFailed, RequestFailed, RequestRejected, SequenceTooLong
from tokenbus.engine.offline.offline_request import resolved_params
from tokenbus.engine.offline.output import Completion, Output
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import FaultCode, FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.chat.answer_form import AnswerForm
    from tokenbus.engine.errors import EngineError
    from tokenbus.engine.types import EngineLimits, Fault, StepOutput, TokenDelta


@dataclass(frozen=True, slots=True)
class OfflinePrompt:
    """A prompt's ids, the parameters with what its rendering adds, and how answers are read.

    form: None where answers are nothing but content.
    shown_ids: special tokens that are part of the text: the marks that answers are read by.
    """

    ids: tuple[int, ...]
    params: SamplingParams
    form: AnswerForm | None = None
    shown_ids: tuple[int, ...] = ()


class AnsweringEngine(Protocol):
    """The part of an engine that takes requests."""

    @property
    def limits(self) -> EngineLimits:
        """Return the model's limits."""

    def add(self, request: Request) -> bool:
        """Take a request, and tell whether a step is due.

        Raises: RequestRejected or SequenceTooLong.
        """

    def abort(self, request_id: int, choice: int | None = None) -> object:
        """End a request, or one choice of it."""


class OfflineBatch:
    """The requests of one call: request `first_id + i` is answered in `outputs[i]`."""

    def __init__(
        self,
        engine: AnsweringEngine,
        tokenizer: PreTrainedTokenizerBase | None,
        first_id: int,
        grammar_field: str,
    ) -> None:
        """Begin without requests.

        Args:
            grammar_field: has asked for the grammars, as the caller has spelled it.
        """
        self.outputs: list[Output] = []
        self._engine = engine
        self._tokenizer = tokenizer
        self._first_id = first_id
        self._grammar_field = grammar_field
        self._texts: dict[tuple[int, int], ChoiceText] = {}
        self._readers: dict[tuple[int, int], AnswerReader] = {}
        self._containment: Containment[int] = Containment()

    @property
    def num_open(self) -> int:
        """Count the choices of requests that have not failed."""
        return sum(len(output.choices) for output in self.outputs if output.error is None)

    def begin(
        self, prepare: Callable[[SamplingParams], OfflinePrompt], params: SamplingParams
    ) -> bool:
        """Give the next request to the engine, or its refusal to its output.

        Returns: whether the engine is to make a step before the next one: see `Engine.add`.
        """
        idx = len(self.outputs)
        self.outputs.append(Output((), [Completion()]))
        with self._containment.guard(idx, "its prompt was prepared"):
            try:
                return self._begin(idx, prepare, params)
            except (RequestRejected, SequenceTooLong) as error:
                self.outputs[idx].fail(error)
        return False

    def take(self, step: StepOutput) -> int:
        """Add what a step has delivered; return how many choices ended with it."""
        num_ended = 0
        for admission in step.admitted:
            idx = admission.request_id - self._first_id
            if idx >= 0:
                self.outputs[idx].num_cached_tokens = admission.num_cached_tokens
        for delta in step.deltas:
            idx = delta.request_id - self._first_id
            if idx < 0:
                continue  # the end of a request that an earlier call gave up
            with self._containment.guard(idx, "its tokens became text"):
                num_ended += self._take(idx, delta)
        self.end_failed()
        return num_ended

    def end_failed(self) -> None:
        """End the requests whose own prompt or text failed."""
        for idx, fault in self._containment.take().items():
            self._engine.abort(self._first_id + idx)
            self.outputs[idx].fail(self._error_of(fault))

    def close(self) -> list[Output]:
        """Return the outputs, with their messages read to the end."""
        for (idx, choice), reader in self._readers.items():
            with self._containment.guard(idx, "its message was read"):
                reader.finish()
                completion = self.outputs[idx].choices[choice]
                completion.read = reader.message
                completion.num_reasoning_tokens = reader.num_reasoning
                if completion.finish_reason is FinishReason.STOP and completion.tool_calls:
                    completion.finish_reason = FinishReason.TOOL_CALLS
        self.end_failed()
        return self.outputs

    def _begin(
        self,
        idx: int,
        prepare: Callable[[SamplingParams], OfflinePrompt],
        params: SamplingParams,
    ) -> bool:
        output = self.outputs[idx]
        params = resolved_params(params)
        if self._tokenizer is None and params.stop:
            raise RequestRejected("stop", "the model has no tokenizer, so there is no text")
        prompt = prepare(params)
        params, output.prompt_ids = prompt.params, prompt.ids
        output.sampling = params.open_among(self._engine.limits.sampling_defaults)
        # Stop strings are found in text, here; the engine sees ids only.
        told: dict[str, Any] = {**output.sampling, "stop": ()}
        request = Request(self._first_id + idx, prompt.ids, replace(params, **told))
        is_step_due = self._engine.add(request)
        output.choices = [Completion() for _ in range(params.n)]
        if self._tokenizer is None:
            return is_step_due
        name = secrets.token_hex(8)
        for choice in range(params.n):
            key = (idx, choice)
            self._texts[key] = ChoiceText(self._tokenizer, prompt.ids, params, prompt.shown_ids)
            if prompt.form is not None:
                named = partial(call_id, name, choice)
                self._readers[key] = AnswerReader(prompt.form, named)
        return is_step_due

    def _take(self, idx: int, delta: TokenDelta) -> bool:
        """Add a delta to its choice; return True if the choice ended with it."""
        output, key = self.outputs[idx], (idx, delta.choice)
        text, reader = self._texts.get(key), self._readers.get(key)
        completion = output.choices[delta.choice]
        if completion.finish_reason is not None:
            return False
        if delta.error is not None:
            output.error = output.error or self._error_of(delta.error)
            text = None
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
        num_kept = len(delta.token_ids)
        if text is not None:
            pieces = _released(text, delta)
            num_kept = min(num_kept, len(pieces))
            completion.text += "".join(pieces)
            if reader is not None:
                for piece in pieces:
                    reader.read_token(piece)
        completion.token_ids.extend(delta.token_ids[:num_kept])
        completion.logprobs.extend(delta.logprobs[:num_kept])
        completion.finish_reason = delta.finish_reason
        if delta.stop_token_id not in self._engine.limits.eos_token_ids:
            completion.stop_reason = delta.stop_token_id
        if text is not None and text.stopped_by is not None:
            completion.finish_reason = FinishReason.STOP
            completion.stop_reason = text.stopped_by
            self._engine.abort(delta.request_id, delta.choice)
        return completion.finish_reason is not None

    def _error_of(self, fault: Fault) -> EngineError:
        """Return what a request was given up for as an error; a bad grammar names its field."""
        if fault.code is FaultCode.GRAMMAR:
            return GrammarFailed(self._grammar_field, fault.message)
        return RequestFailed(fault.message)


def _released(text: ChoiceText, delta: TokenDelta) -> list[str]:
    """Return the texts that tokens release; what an end without a token releases is one more."""
    is_last = delta.finish_reason is not None
    released = text.push(delta.token_ids, is_last=is_last, stop_token_id=delta.stop_token_id)
    pieces = [*released.texts]
    if is_last and not delta.token_ids:
        pieces += filter(None, [text.flush()])
    return pieces
