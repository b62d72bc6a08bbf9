"""Prompts: a producer's request becomes the engine's, template applied and tokenised."""

from __future__ import annotations

from array import array
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.tool_calls import ToolCalling
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.text.chat_prompt import chat_text
from tokenbus.engine.types import FaultCode, GrammarKind, GrammarSpec, SamplingParams
from tokenbus.producer.contract.cache_scope import NO_GROUPS
from tokenbus.producer.contract.schema import JobRequest, NamedTool, StoredRequest
from tokenbus.producer.errors import RequestInvalid
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.held.prepared_job import PreparedJob

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.types import EngineLimits
    from tokenbus.producer.contract.cache_scope import CacheGroups

INVALID = "invalid_request"
TOO_LONG = "too_long"


class PromptPreparer:
    """Checks requests and tokenises them for one model; safe to call from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        limits: EngineLimits,
        cache_groups: CacheGroups = NO_GROUPS,
    ) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._cache_groups = cache_groups
        longest = max((len(token) for token in tokenizer.get_vocab()), default=1)
        self._max_characters = limits.max_model_len * longest

    def read(self, raw: bytes) -> JobRequest:
        """Check a request. Raises: JobRefused naming the field."""
        try:
            return StoredRequest.parse(raw)
        except RequestInvalid as error:
            raise JobRefused(INVALID, error.field, error.message) from None

    def tokenise(self, request: JobRequest) -> PreparedJob:
        """Tokenise the prompt of a request and take its sizes.

        Raises: JobRefused naming the field, if the job can never run on this model.
        """
        tools = _tool_dicts(request)
        calling = self._calling(tools)
        field, ids = self._prompt_ids(request, tools, calling)
        if not ids:
            raise JobRefused(INVALID, field, "the prompt has no token")
        limit = self._limits.max_model_len
        if len(ids) >= limit:
            message = f"{len(ids)} tokens leave no room for output in a context of {limit}"
            raise JobRefused(TOO_LONG, field, message)
        if len(ids) + request.max_tokens > limit:
            message = (
                f"{len(ids)} prompt tokens and {request.max_tokens} to generate exceed the"
                f" context of {limit} tokens; at most {limit - len(ids)} fit"
            )
            raise JobRefused(TOO_LONG, "max_tokens", message)
        params = _sampling_params(request)
        if calling is None:
            return PreparedJob(request, ids, params, cache_groups=self._cache_groups)
        choice = request.tool_choice
        named = choice.name if isinstance(choice, NamedTool) else choice
        grammar = calling.grammar(named, request.parallel_tool_calls)
        params = replace(params, grammar=grammar)
        return PreparedJob(request, ids, params, calling.reader(), self._cache_groups)

    def _calling(self, tools: list[dict[str, Any]]) -> ToolCalling | None:
        if not tools:
            return None
        try:
            return ToolCalling(tools_of(tools), self._tokenizer)
        except RequestRejected as error:
            message = str(error).removeprefix(f"{error.field}: ")
            code = FaultCode.GRAMMAR.value if isinstance(error, GrammarRejected) else INVALID
            raise JobRefused(code, error.field, message) from None

    def _prompt_ids(
        self, request: JobRequest, tools: list[dict[str, Any]], calling: ToolCalling | None
    ) -> tuple[str, array[int]]:
        """Return the name of the field that holds the prompt and its token ids."""
        if request.token_ids is not None:
            highest = int(np.frombuffer(request.token_ids, np.intc).max())
            if highest >= self._limits.vocab_size:
                message = f"{highest} is not in the vocabulary of {self._limits.vocab_size}"
                raise JobRefused(INVALID, "token_ids", message)
            return "token_ids", request.token_ids
        if request.prompt is not None:
            return "prompt", self._encode("prompt", request.prompt, special=True)
        text = self._render(request, tools, calling)
        return "messages", self._encode("messages", text, special=False)

    def _encode(self, field: str, text: str, *, special: bool) -> array[int]:
        if len(text) > self._max_characters:
            message = f"{len(text)} characters exceed any prompt of this model"
            raise JobRefused(TOO_LONG, field, message)
        try:
            ids: list[int] = self._tokenizer.encode(text, add_special_tokens=special)
        except (UnicodeError, ValueError) as error:
            raise JobRefused(INVALID, field, f"cannot be tokenised: {error}") from None
        return array("i", ids)

    def _render(
        self, request: JobRequest, tools: list[dict[str, Any]], calling: ToolCalling | None
    ) -> str:
        messages = [m.model_dump(exclude_none=True) for m in request.messages or ()]
        if self._tokenizer.chat_template is None:
            raise JobRefused(INVALID, "messages", "this model has no chat template; send a prompt")
        try:
            return chat_text(self._tokenizer, messages, tools, calling)
        # Templates are programs that come with the model and raise whatever they like.
        except Exception as error:
            reason = f"the model's chat template refuses them: {error}"
            raise JobRefused(INVALID, "messages", reason) from error


def _tool_dicts(request: JobRequest) -> list[dict[str, Any]]:
    """Return the tools that the model may call, in the form that templates take."""
    if request.tools is None or request.tool_choice == "none":
        return []
    listed = [tool.model_dump(exclude_none=True) for tool in request.tools]
    for tool in listed:
        tool["function"]["parameters"] = tool["function"]["parameters"] or {
            "type": "object",
            "properties": {},
        }
    return listed


def _sampling_params(request: JobRequest) -> SamplingParams:
    grammar = request.grammar
    return SamplingParams(
        n=request.n,
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
        temperature=request.temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        repetition_penalty=request.repetition_penalty,
        presence_penalty=request.presence_penalty,
        frequency_penalty=request.frequency_penalty,
        logit_bias=dict(request.logit_bias),
        bad_words=tuple(tuple(ids) for ids in request.bad_words),
        seed=request.seed or 0,
        stop=tuple(request.stop),
        include_stop=request.include_stop,
        stop_token_ids=tuple(request.stop_token_ids),
        ignore_eos=request.ignore_eos,
        logprobs=request.logprobs,
        prompt_logprobs=request.prompt_logprobs,
        grammar=None if grammar is None else GrammarSpec(GrammarKind(grammar.kind), grammar.source),
    )
