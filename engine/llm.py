"""The offline API: texts in, texts out, without a queue.

It is one file because it is one face: what a call takes is read in `offline_request`, and each
request of a batch is begun, fed and ended here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.chat.requests.request_rules import model_names
from tokenbus.engine.chat.requests.value_checks import text_problem
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.containment import Containment
from tokenbus.engine.errors import GrammarFailed, RequestFailed, RequestRejected, SequenceTooLong
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.offline_request import (
    OfflineRequest,
    conversation_of,
    conversations_of,
    named_choice,
    params_of,
    prompt_among,
    prompts_of,
    settled,
    token_ids_of,
)
from tokenbus.engine.output import Completion, Output
from tokenbus.engine.text.chat_prompt import ChatRenderer
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.text.prompt_encoder import PromptEncoder
from tokenbus.engine.types import FaultCode, FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.errors import EngineError
    from tokenbus.engine.grammar.tool_calls import ToolCalling
    from tokenbus.engine.types import EngineStats, Fault, TokenDelta

Prompt = str | list[int] | tuple[int, ...]
# A prompt's ids, and the parameters with what its rendering adds to them.
_Prepared = tuple[tuple[int, ...], SamplingParams]


@dataclass(slots=True)
class _Batch:
    """The requests of one call: request `first_id + i` is answered in `outputs[i]`."""

    first_id: int
    # Special tokens that are part of the text: the marks that calls are read by.
    shown_ids: tuple[int, ...] = ()
    # The field that has asked for the grammars, as the caller has spelled it.
    grammar_field: str = "grammar"
    outputs: list[Output] = field(default_factory=list)
    texts: dict[tuple[int, int], ChoiceText] = field(default_factory=dict)
    containment: Containment[int] = field(default_factory=Containment)


class LLM:
    """A model that answers batches of prompts.

    >>> llm = LLM("smollm2-135m")
    >>> llm.generate(["The capital of France is"], SamplingParams(temperature=0))[0].text
    """

    def __init__(
        self, model: str | Path, *, served_model_name: str | Sequence[str] = (), **settings: Any
    ) -> None:
        """Load a model; `settings` are the fields of EngineConfig (dtype, device, page_size, …).

        Args:
            served_model_name: other names under which requests may ask for the model.
        Raises: ModelNotFound, ModelBroken, ModelUnsupported, or RequestRejected for a setting.
        """
        self.config = EngineConfig(model=str(model), **settings)
        added = [served_model_name] if isinstance(served_model_name, str) else served_model_name
        self._names = model_names(self.config.model, list(added))
        loaded = load_for(self.config)
        self.tokenizer = loaded.tokenizer
        self._encoder = None if self.tokenizer is None else PromptEncoder(self.tokenizer)
        self.engine: Engine = engine_for(loaded, self.config)
        self._next_id = 0
        eos_token_ids = self.engine.limits.eos_token_ids
        # Made for the first conversation.
        self._chat = cache(partial(ChatRenderer.of, self.tokenizer, self.config, eos_token_ids))

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt] | None = None,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> list[Output]:
        """Answer prompts, texts or lists of token ids, in their order.

        Args:
            prompts: one or many; a list of integers is one prompt.
            params: for all prompts, or one for each.
            progress: show a bar on stderr.
            fields: of a request, as a job of the queue has them and in any of the spellings that it
                takes (docs/requests.md): `prompt` or `token_ids` in place of `prompts`, and
                sampling fields in place of `params`.
        Returns: an output per prompt. A request that is refused or fails has its `error` there, and
            the others are answered.
        Raises: the error of the first request if none can be answered: RequestRejected,
            SequenceTooLong, GrammarFailed or RequestFailed. DeviceFault or ModelUnsound if the
            engine is lost.
        """
        if prompts is None:
            prompts, fields = prompt_among(fields)
        asked = OfflineRequest.of(fields, self._names, is_chat=False)
        listed = prompts_of(prompts)
        makers = [partial(self._encode, prompt) for prompt in listed]
        own = params_of(listed, params, asked)
        return self._run(makers, own, progress=progress, grammar_field=asked.grammar_field)

    def chat(
        self,
        messages: Sequence[Any] | Sequence[Sequence[Any]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
        **fields: Any,
    ) -> list[Output]:
        """Answer one conversation or several, through the model's chat template.

        Args:
            messages: as chat APIs spell them.
            params: for all conversations, or one for each.
            progress: show a bar on stderr.
            fields: of a request, as a job of the queue has them and in any of the spellings that it
                takes (docs/requests.md): `tools`, `tool_choice` (the name of a tool, too),
                `response_format`, and sampling fields in place of `params`.
        Raises: as `generate` does; RequestRejected for a tool that cannot be enforced.
        """
        own = getattr(self.tokenizer, "chat_template", None)
        if self.tokenizer is None or not (own or self.config.chat_template):
            raise RequestRejected("messages", "this model has no chat template; send a prompt")
        many = conversations_of(messages)
        asked = OfflineRequest.of(named_choice(fields), self._names, is_chat=True)
        listed = params_of(many, params, asked)
        calling = None
        if asked.tools:
            calling = self._chat().calling(tools_of(asked.tools))
            if any(getattr(item, "grammar", None) is not None for item in listed):
                why = "not together with tools, unless tool_choice is none"
                raise RequestRejected("grammar", why)
        makers = [partial(self._render, messages, asked, calling) for messages in many]
        shown = () if calling is None else self._chat().shown_ids
        told: dict[str, Any] = {"shown_ids": shown, "grammar_field": asked.grammar_field}
        outputs = self._run(makers, listed, progress=progress, **told)
        if calling is not None:
            _read_calls(outputs, calling)
        return outputs

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes."""
        return self.engine.reset_prefix_cache()

    def stats(self) -> EngineStats:
        """Return the engine's counters and gauges."""
        return self.engine.stats()

    def close(self) -> None:
        """Stop helper threads."""
        self.engine.close()

    def _render(
        self,
        messages: Any,
        asked: OfflineRequest,
        calling: ToolCalling | None,
        params: SamplingParams,
    ) -> _Prepared:
        turns, continues = conversation_of(messages)
        continues = continues or asked.continue_final_message
        chat = self._chat()
        prompt = chat.render(
            turns,
            asked.tools,
            calling,
            chat_template_kwargs=asked.template_arguments,
            add_generation_prompt=asked.add_generation_prompt and not continues,
            continue_final_message=continues,
        )
        rule = prompt.reasoning(asked.max_reasoning_tokens)
        if calling is None:
            grammar = chat.constrained(params.grammar, rule)
        else:
            grammar = calling.grammar(asked.tool_choice, asked.parallel_tool_calls, rule)
        return self._tokenised(prompt.text, "messages"), replace(params, grammar=grammar)

    def _encode(self, prompt: Any, params: SamplingParams) -> _Prepared:
        if not isinstance(prompt, str):
            return token_ids_of(prompt, self.engine.limits.vocab_size), params
        if self._encoder is None:
            raise RequestRejected("prompts", "the model has no tokenizer: give token ids")
        told = text_problem(prompt)
        if told is not None:
            raise RequestRejected("prompt", told)
        return self._tokenised(prompt, "prompt"), params

    def _tokenised(self, text: str, field: str) -> tuple[int, ...]:
        assert self._encoder is not None
        found = self._encoder.encode([text], special=field == "prompt")[0]
        if isinstance(found, UnicodeError | ValueError):
            raise RequestRejected(field, f"cannot be tokenised: {found}") from found
        if isinstance(found, Exception):
            raise found
        if not found:
            raise RequestRejected(field, "the prompt has no token")
        return tuple(found)

    def _run(
        self,
        prompts: Sequence[Callable[[SamplingParams], _Prepared]],
        params: list[SamplingParams],
        *,
        progress: bool,
        shown_ids: tuple[int, ...] = (),
        grammar_field: str = "grammar",
    ) -> list[Output]:
        """Answer requests; one that fails gets its error, and if all do, the first is raised."""
        batch = _Batch(self._next_id, shown_ids, grammar_field)
        self._next_id += len(prompts)
        try:
            for idx, (prepare, item) in enumerate(zip(prompts, params, strict=True)):
                batch.outputs.append(Output((), [Completion()]))
                with batch.containment.guard(idx, "its prompt was prepared"):
                    self._begin(batch, idx, prepare, item)
            self._end_failed(batch)
            self._drain(batch, progress=progress)
        except BaseException:
            for idx in range(len(prompts)):
                self.engine.abort(batch.first_id + idx)
            raise
        errors = [output.error for output in batch.outputs]
        if errors and errors[0] is not None and None not in errors:
            raise errors[0]
        return batch.outputs

    def _begin(
        self,
        batch: _Batch,
        idx: int,
        prepare: Callable[[SamplingParams], _Prepared],
        params: SamplingParams,
    ) -> None:
        """Give a request to the engine, or its refusal to its output."""
        output = batch.outputs[idx]
        try:
            params = settled(params)
            if self.tokenizer is None and params.stop:
                raise RequestRejected("stop", "the model has no tokenizer, so there is no text")
            output.prompt_ids, params = prepare(params)
            output.sampling = params.open_among(self.engine.limits.sampling_defaults)
            # Stop strings are found in text, here; the engine sees ids only.
            told: dict[str, Any] = {**output.sampling, "stop": ()}
            request = Request(batch.first_id + idx, output.prompt_ids, replace(params, **told))
            self.engine.add(request)
        except (RequestRejected, SequenceTooLong) as error:
            output.fail(error)
            return
        output.choices = [Completion() for _ in range(params.n)]
        if self.tokenizer is not None:
            for choice in range(params.n):
                batch.texts[idx, choice] = ChoiceText(
                    self.tokenizer, output.prompt_ids, params, batch.shown_ids
                )

    def _end_failed(self, batch: _Batch) -> None:
        """End the requests whose own prompt or text failed."""
        for idx, fault in batch.containment.take().items():
            self.engine.abort(batch.first_id + idx)
            batch.outputs[idx].fail(_error_of(fault, batch.grammar_field))

    def _drain(self, batch: _Batch, *, progress: bool) -> None:
        outputs = batch.outputs
        num_open = sum(len(output.choices) for output in outputs if output.error is None)
        with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
            task = bar.add_task("generating", total=num_open)
            while self.engine.has_work:
                step = self.engine.step()
                for admission in step.admitted:
                    idx = admission.request_id - batch.first_id
                    outputs[idx].num_cached_tokens = admission.num_cached_tokens
                for delta in step.deltas:
                    idx = delta.request_id - batch.first_id
                    if idx < 0:
                        continue  # the end of a request that an earlier call gave up
                    with batch.containment.guard(idx, "its tokens became text"):
                        if self._take(batch, idx, delta):
                            bar.advance(task)
                self._end_failed(batch)

    def _take(self, batch: _Batch, idx: int, delta: TokenDelta) -> bool:
        """Add a delta to its choice; return True if the choice ended with it."""
        output, text = batch.outputs[idx], batch.texts.get((idx, delta.choice))
        completion = output.choices[delta.choice]
        if completion.finish_reason is not None:
            return False
        if delta.error is not None:
            output.error = output.error or _error_of(delta.error, batch.grammar_field)
            text = None
        if delta.prompt_logprobs is not None:
            output.prompt_logprobs = delta.prompt_logprobs
        num_kept = len(delta.token_ids)
        if text is not None:
            is_last = delta.finish_reason is not None
            released = text.push(
                delta.token_ids, is_last=is_last, stop_token_id=delta.stop_token_id
            )
            num_kept = len(released.ids)
            completion.text += "".join(released.texts)
            if is_last and not delta.token_ids:
                completion.text += text.flush()
        completion.token_ids.extend(delta.token_ids[:num_kept])
        completion.logprobs.extend(delta.logprobs[:num_kept])
        completion.finish_reason = delta.finish_reason
        completion.stop_reason = _stop_reason(delta, self.engine.limits.eos_token_ids)
        if text is not None and text.stopped_by is not None:
            completion.finish_reason = FinishReason.STOP
            completion.stop_reason = text.stopped_by
            self.engine.abort(delta.request_id, delta.choice)
        return completion.finish_reason is not None


def _read_calls(outputs: list[Output], calling: ToolCalling) -> None:
    """Read the tool calls of every choice; an answer that cannot be read fails alone."""
    reader = calling.reader()
    containment: Containment[int] = Containment()
    for idx, output in enumerate(outputs):
        with containment.guard(idx, "its tool calls were read"):
            for choice in output.choices:
                choice.tool_calls = reader.parse(choice.text).calls
    for idx, fault in containment.take().items():
        outputs[idx].fail(RequestFailed(fault.message))


def _error_of(fault: Fault, grammar_field: str) -> EngineError:
    """Return what the engine gave a request up for as an error; a bad grammar names its field."""
    if fault.code is FaultCode.GRAMMAR:
        return GrammarFailed(grammar_field, fault.message)
    return RequestFailed(fault.message)


def _stop_reason(delta: TokenDelta, eos_token_ids: tuple[int, ...]) -> int | None:
    return None if delta.stop_token_id in eos_token_ids else delta.stop_token_id
