"""The offline API: texts in, texts out, without a queue.

What a call takes is read in `offline_request`; its requests are answered in an `OfflineBatch`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.chat.answer_form import AnswerForm
from tokenbus.engine.chat.requests.request_rules import model_names
from tokenbus.engine.chat.requests.value_checks import text_problem
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.offline.offline_batch import OfflineBatch, OfflinePrompt
from tokenbus.engine.offline.offline_request import (
    OfflineRequest,
    conversation_of,
    conversations_of,
    named_choice,
    params_of,
    prompt_among,
    prompts_of,
    token_ids_of,
)
from tokenbus.engine.text.chat_prompt import ChatRenderer
from tokenbus.engine.text.prompt_encoder import PromptEncoder

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.grammar.tool_calls import ToolCalling
    from tokenbus.engine.offline.output import Output
    from tokenbus.engine.types import EngineStats, SamplingParams

Prompt = str | list[int] | tuple[int, ...]


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
        makers = [partial(self._render, messages, asked, calling) for messages in many]
        return self._run(makers, listed, progress=progress, grammar_field=asked.grammar_field)

    def reset_prefix_cache(self) -> bool:
        """Forget all cached prefixes."""
        return self.engine.reset_prefix_cache()

    def stats(self) -> EngineStats:
        """Return the engine's counters and gauges."""
        return self.engine.stats()

    def close(self) -> None:
        """Stop helper threads, and end the other ranks; the end of the process does so, too."""
        self.engine.close()

    def _render(
        self,
        messages: Any,
        asked: OfflineRequest,
        calling: ToolCalling | None,
        params: SamplingParams,
    ) -> OfflinePrompt:
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
            parallel = asked.parallel_tool_calls
            grammar = calling.grammar(asked.tool_choice, parallel, rule, params.grammar)
        form = AnswerForm.of(
            chat.format, asked.tools, starts_in_reasoning=prompt.starts_in_reasoning
        )
        shown = () if form is None else chat.shown_ids
        ids = self._tokenised(prompt.text, "messages")
        return OfflinePrompt(ids, replace(params, grammar=grammar), form, shown)

    def _encode(self, prompt: Any, params: SamplingParams) -> OfflinePrompt:
        if not isinstance(prompt, str):
            return OfflinePrompt(token_ids_of(prompt, self.engine.limits.vocab_size), params)
        if self._encoder is None:
            raise RequestRejected("prompts", "the model has no tokenizer: give token ids")
        told = text_problem(prompt)
        if told is not None:
            raise RequestRejected("prompt", told)
        return OfflinePrompt(self._tokenised(prompt, "prompt"), params)

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
        prompts: Sequence[Callable[[SamplingParams], OfflinePrompt]],
        params: list[SamplingParams],
        *,
        progress: bool,
        grammar_field: str = "grammar",
    ) -> list[Output]:
        """Answer requests; one that fails gets its error, and if all do, the first is raised."""
        first_id = self._next_id
        self._next_id += len(prompts)
        batch = OfflineBatch(self.engine, self.tokenizer, first_id, grammar_field)
        begin = [
            partial(batch.begin, prepare, item)
            for prepare, item in zip(prompts, params, strict=True)
        ]
        try:
            self._answer(batch, begin, progress=progress)
            outputs = batch.close()
        except BaseException:
            for request_id in range(first_id, self._next_id):
                self.engine.abort(request_id)
            raise
        errors = [output.error for output in outputs]
        if errors and errors[0] is not None and None not in errors:
            raise errors[0]
        return outputs

    def _answer(
        self, batch: OfflineBatch, begin: Sequence[Callable[[], bool]], *, progress: bool
    ) -> None:
        """Begin requests, and step until all have ended.

        The device computes while further prompts are prepared: to tokenise one takes longer than
        to launch a step.
        """
        with Progress(console=Console(stderr=True), transient=True, disable=not progress) as bar:
            task = bar.add_task("generating", total=len(begin))
            for begin_next in begin:
                if begin_next():
                    bar.advance(task, batch.take(self.engine.step()))
            batch.end_failed()
            bar.update(task, total=batch.num_open)
            while self.engine.has_work:
                bar.advance(task, batch.take(self.engine.step()))
