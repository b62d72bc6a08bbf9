"""The offline API: texts in, texts out, without a queue."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.containment import Containment
from tokenbus.engine.errors import RequestFailed, RequestRejected, SequenceTooLong
from tokenbus.engine.grammar.tool_calls import ToolCalling, ToolChoice
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.output import Completion, Output
from tokenbus.engine.text.chat_prompt import chat_text
from tokenbus.engine.text.choice_text import ChoiceText
from tokenbus.engine.types import FinishReason, Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.types import EngineStats, TokenDelta

Prompt = str | list[int] | tuple[int, ...]


@dataclass(slots=True)
class _Batch:
    """The requests of one call: request `first_id + i` is answered in `outputs[i]`."""

    first_id: int
    outputs: list[Output] = field(default_factory=list)
    texts: dict[tuple[int, int], ChoiceText] = field(default_factory=dict)
    containment: Containment[int] = field(default_factory=Containment)


class LLM:
    """A model that answers batches of prompts.

    >>> llm = LLM("smollm2-135m")
    >>> llm.generate(["The capital of France is"], SamplingParams(temperature=0))[0].text
    """

    def __init__(self, model: str | Path, **settings: Any) -> None:
        """Load a model; `settings` are the fields of EngineConfig (dtype, device, page_size, …).

        Raises: ModelNotFound, ModelBroken, ModelUnsupported, or RequestRejected for a setting.
        """
        self.config = EngineConfig(model=str(model), **settings)
        loaded = load_for(self.config)
        self.tokenizer = loaded.tokenizer
        self.engine: Engine = engine_for(loaded, self.config)
        self._next_id = 0

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = True,
    ) -> list[Output]:
        """Answer prompts, texts or lists of token ids, in their order.

        Args:
            prompts: one or many; a list of integers is one prompt.
            params: for all prompts, or one for each.
            progress: show a bar on stderr.
        Returns: an output per prompt. A request that is refused or fails has its `error` there, and
            the others are answered.
        Raises: the error of the first request if none can be answered: RequestRejected,
            SequenceTooLong or RequestFailed. DeviceFault or ModelUnsound if the engine is lost.
        """
        listed = _as_list(prompts)
        makers = [partial(self._encode, prompt) for prompt in listed]
        return self._run(makers, _params_of(listed, params), progress=progress)

    def chat(
        self,
        messages: Sequence[dict[str, Any]] | Sequence[Sequence[dict[str, Any]]],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        tool_choice: ToolChoice | str = ToolChoice.AUTO,
        parallel_tool_calls: bool = True,
        progress: bool = True,
    ) -> list[Output]:
        """Answer one conversation or several, through the model's chat template.

        Args:
            tools: functions as chat APIs spell them; calls have arguments that satisfy their
                schemas.
            tool_choice: auto, none, required, or the name of the one tool to call.
            parallel_tool_calls: whether an answer may hold more than one call.
        Raises: as `generate` does; RequestRejected for a tool that cannot be enforced.
        """
        if self.tokenizer is None or not getattr(self.tokenizer, "chat_template", None):
            raise RequestRejected("messages", "the model has no chat template")
        is_one = not messages or not isinstance(messages[0], (list, tuple))
        many: list[Any] = [messages] if is_one else list(messages)
        if not tools or tool_choice == ToolChoice.NONE:
            makers = [partial(self._render, conversation) for conversation in many]
            return self._run(makers, _params_of(many, params), progress=progress)
        calling = ToolCalling(tools_of(tools), self.tokenizer)
        grammar = calling.grammar(tool_choice, parallel_tool_calls)
        listed = _params_of(many, params)
        if any(item.grammar is not None for item in listed):
            raise RequestRejected("tools", "a grammar and tools cannot both rule an answer")
        outputs = self._run(
            [partial(self._render, conversation, tools, calling) for conversation in many],
            [replace(item, grammar=grammar) for item in listed],
            progress=progress,
        )
        reader = calling.reader()
        containment: Containment[int] = Containment()
        for idx, output in enumerate(outputs):
            with containment.guard(idx, "its tool calls were read"):
                for choice in output.choices:
                    choice.tool_calls = reader.parse(choice.text).calls
        for idx, fault in containment.take().items():
            outputs[idx].fail(RequestFailed(fault.message))
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
        messages: list[dict[str, Any]],
        tools: Sequence[dict[str, Any]] = (),
        calling: ToolCalling | None = None,
    ) -> tuple[int, ...]:
        text = chat_text(self.tokenizer, list(messages), tools, calling)
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        if not isinstance(prompt, str):
            return tuple(prompt)
        if self.tokenizer is None:
            raise RequestRejected("prompts", "the model has no tokenizer: give token ids")
        return tuple(self.tokenizer(prompt)["input_ids"])

    def _run(
        self,
        prompts: Sequence[Callable[[], tuple[int, ...]]],
        params: list[SamplingParams],
        *,
        progress: bool,
    ) -> list[Output]:
        """Answer requests; one that fails gets its error, and if all do, the first is raised."""
        batch = _Batch(self._next_id)
        self._next_id += len(prompts)
        try:
            for idx, (make_ids, item) in enumerate(zip(prompts, params, strict=True)):
                batch.outputs.append(Output((), [Completion()]))
                with batch.containment.guard(idx, "its prompt was prepared"):
                    self._begin(batch, idx, make_ids, item)
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
        make_ids: Callable[[], tuple[int, ...]],
        params: SamplingParams,
    ) -> None:
        """Give a request to the engine, or its refusal to its output."""
        output = batch.outputs[idx]
        try:
            if self.tokenizer is None and params.stop:
                raise RequestRejected("stop", "the model has no tokenizer, so there is no text")
            output.prompt_ids = make_ids()
            output.sampling = params.open_among(self.engine.limits.sampling_defaults)
            # Stop strings are found in text, here; the engine sees ids only.
            settled: dict[str, Any] = {**output.sampling, "stop": ()}
            request = Request(batch.first_id + idx, output.prompt_ids, replace(params, **settled))
            self.engine.add(request)
        except (RequestRejected, SequenceTooLong) as error:
            output.fail(error)
            return
        output.choices = [Completion() for _ in range(params.n)]
        if self.tokenizer is not None:
            for choice in range(params.n):
                batch.texts[idx, choice] = ChoiceText(self.tokenizer, output.prompt_ids, params)

    def _end_failed(self, batch: _Batch) -> None:
        """End the requests whose own prompt or text failed."""
        for idx, fault in batch.containment.take().items():
            self.engine.abort(batch.first_id + idx)
            batch.outputs[idx].fail(RequestFailed(fault.message))

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
                        if self._take(delta, outputs[idx], batch.texts.get((idx, delta.choice))):
                            bar.advance(task)
                self._end_failed(batch)

    def _take(self, delta: TokenDelta, output: Output, text: ChoiceText | None) -> bool:
        """Add a delta to its choice; return True if the choice ended with it."""
        completion = output.choices[delta.choice]
        if completion.finish_reason is not None:
            return False
        if delta.error is not None:
            output.error = output.error or RequestFailed(delta.error.message)
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


def _params_of(
    requests: Sequence[Any], params: SamplingParams | Sequence[SamplingParams] | None
) -> list[SamplingParams]:
    """Return the parameters of each request. Raises: RequestRejected if they are more or fewer."""
    if params is None or isinstance(params, SamplingParams):
        return [params or SamplingParams()] * len(requests)
    if len(params) != len(requests):
        raise RequestRejected("params", f"{len(params)} for {len(requests)} prompts")
    return list(params)


def _stop_reason(delta: TokenDelta, eos_token_ids: tuple[int, ...]) -> int | None:
    return None if delta.stop_token_id in eos_token_ids else delta.stop_token_id


def _as_list(prompts: Any) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [tuple(int(item) for item in prompts if isinstance(item, int))]
    return list(prompts)
