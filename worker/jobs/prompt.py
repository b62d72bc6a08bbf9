"""Prompts: a producer's request becomes the engine's, template applied and tokenised.

A request is read, its prompt is rendered to text, that is tokenised together with others, and what
comes of it is measured against the model. Whatever fails on the way fails one request alone.

It is one file because it is one way, which every request goes from its first line to its last.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.execution.request_check import too_long
from tokenbus.engine.grammar.tools import tools_of
from tokenbus.engine.text.model_chat import model_chat
from tokenbus.engine.text.prompt_encoder import PromptEncoder
from tokenbus.engine.types import FaultCode, GrammarKind, GrammarSpec, SamplingParams
from tokenbus.producer.contract.bounds import CHECKPOINT_FIELDS
from tokenbus.producer.contract.cache_scope import NO_GROUPS
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.contract.schema import JobRequest, NamedTool, StoredRequest
from tokenbus.producer.errors import RequestInvalid
from tokenbus.worker.errors import JobRefused
from tokenbus.worker.held.prepared_job import PreparedJob
from tokenbus.worker.request_tools import tool_dicts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.tool_calls import ToolCalling
    from tokenbus.engine.text.chat_prompt import ChatPrompt
    from tokenbus.engine.text.templates.chat_settings import ChatSettings
    from tokenbus.engine.types import EngineLimits
    from tokenbus.producer.contract.cache_scope import CacheGroups

INVALID = "invalid_request"
TOO_LONG = "too_long"


# Up to so many ids a loop is over before numpy has begun.
_FEW_IDS = 128
# Conversations of more turns are rendered where nobody waits: a turn takes a template up to 20 us.
MAX_QUICK_TURNS = 32


@dataclass(slots=True)
class PendingPrompt:
    """A request on its way: read, rendered, tokenised; or what it failed of.

    Rendered it has a prompt in `field`, as `text` or, where it came so, as `ids`. As a context
    manager it keeps what is raised as its `failure`.
    """

    request: JobRequest | None = None
    field: str = ""
    text: str | None = None
    ids: array[int] | None = None
    prompt: ChatPrompt | None = None
    grammar: GrammarSpec | None = None
    failure: Exception | None = None

    def __enter__(self) -> None:
        """Begin a part of the way."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> bool:
        """Keep what was raised."""
        if isinstance(error, Exception):
            self.failure = error
        return self.failure is not None

    @property
    def is_quick(self) -> bool:
        """Tell whether it is rendered sooner than a thread is asked to."""
        request = self.request
        if request is None or request.messages is None:
            return True
        return not request.tools and len(request.messages) <= MAX_QUICK_TURNS

    @property
    def num_characters(self) -> int:
        """Count the characters that are to be tokenised."""
        return len(self.text) if self.text is not None else 0


class PromptPreparer:
    """Checks requests and tokenises them for one model; safe to call from several threads."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        limits: EngineLimits,
        cache_groups: CacheGroups = NO_GROUPS,
        chat_settings: ChatSettings | None = None,
    ) -> None:
        """Make what renders conversations.

        Raises: RequestRejected for a setting of chats that this model cannot have.
        """
        self.chat, self._no_chat = model_chat(tokenizer, limits.eos_token_ids, chat_settings)
        self._encoder = PromptEncoder(tokenizer)
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

    def begin(self, raw: bytes) -> PendingPrompt:
        """Begin with a request as it came."""
        pending = PendingPrompt()
        with pending:
            pending.request = self.read(raw)
        return pending

    def render(self, pending: PendingPrompt) -> None:
        """Apply the chat template, unless that was done."""
        request = pending.request
        if pending.field or pending.failure is not None or request is None:
            return
        with pending:
            if request.token_ids is not None:
                pending.field, pending.ids = "token_ids", self._checked(request.token_ids)
            elif request.prompt is not None:
                pending.field, pending.text = "prompt", request.prompt
            else:
                tools = tool_dicts(request)
                calling = self._calling(tools)
                pending.prompt = self._render(request, tools, calling)
                pending.field, pending.text = "messages", pending.prompt.text
                pending.grammar = self._constraint(request, pending.prompt, calling)
            if pending.num_characters > self._max_characters:
                message = f"{pending.num_characters} characters exceed any prompt of this model"
                raise JobRefused(TOO_LONG, pending.field, message)

    def encode(self, prompts: Sequence[PendingPrompt]) -> None:
        """Tokenise all prompts, and render those that were not."""
        for pending in prompts:
            self.render(pending)
        for is_special in (False, True):
            chosen = [
                pending
                for pending in prompts
                if pending.text is not None
                and pending.failure is None
                and (pending.field == "prompt") is is_special
            ]
            texts = [pending.text for pending in chosen if pending.text is not None]
            if not texts:
                continue
            encoded = self._encoder.encode(texts, special=is_special)
            for pending, found in zip(chosen, encoded, strict=True):
                _take(pending, found)

    def finish(self, pending: PendingPrompt) -> PreparedJob:
        """Take the sizes of a tokenised prompt.

        Raises: JobRefused naming the field, if the job can never run on this model; whatever else
            it failed of on the way.
        """
        if pending.failure is not None:
            raise pending.failure
        request, ids = pending.request, pending.ids
        assert request is not None
        if not ids:
            raise JobRefused(INVALID, pending.field, "the prompt has no token")
        limit = self._limits.max_model_len
        told = too_long(len(ids), request.max_tokens, limit)
        if told is not None:
            field = pending.field if len(ids) >= limit else "max_tokens"
            raise JobRefused(TOO_LONG, field, told)
        params = _sampling_params(request)
        sampling = params.open_among(self._limits.sampling_defaults)
        opened: dict[str, Any] = dict(sampling)
        params = replace(params, **opened) if opened else params
        groups = self._cache_groups
        plain = PreparedJob(request, ids, params, cache_groups=groups, sampling=sampling)
        return self._conversing(plain, pending)

    def _conversing(self, job: PreparedJob, pending: PendingPrompt) -> PreparedJob:
        """Add to a conversation's job what constrains its answers, and how they are read."""
        prompt = pending.prompt
        if prompt is None or self.chat is None:
            return job
        chat = JobChat.of(
            self.chat.format,
            tool_dicts(job.request),
            starts_in_reasoning=prompt.starts_in_reasoning,
        )
        shown = () if chat is None else self.chat.shown_ids
        params = replace(job.params, grammar=pending.grammar)
        return replace(job, params=params, chat=chat, shown_ids=shown)

    def tokenise(self, request: JobRequest) -> PreparedJob:
        """Tokenise the prompt of one request and take its sizes.

        Raises: as `finish`.
        """
        pending = PendingPrompt(request)
        self.encode([pending])
        return self.finish(pending)

    def _calling(self, tools: list[dict[str, Any]]) -> ToolCalling | None:
        if not tools or self.chat is None:
            return None
        try:
            return self.chat.calling(tools_of(tools))
        except RequestRejected as error:
            raise _refused(error) from None

    def _constraint(
        self, request: JobRequest, prompt: ChatPrompt, calling: ToolCalling | None
    ) -> GrammarSpec | None:
        """Return what constrains the answers to a conversation."""
        assert self.chat is not None
        rule, choice = prompt.reasoning(request.max_reasoning_tokens), request.tool_choice
        named = choice.name if isinstance(choice, NamedTool) else choice
        given = _grammar_of(request)
        try:
            if calling is None:
                return self.chat.constrained(given, rule)
            return calling.grammar(named, request.parallel_tool_calls, rule, given)
        except RequestRejected as error:
            raise _refused(error) from None

    def _checked(self, token_ids: array[int]) -> array[int]:
        """Return ids that are all in the vocabulary."""
        if len(token_ids) <= _FEW_IDS:
            highest = max(token_ids)
        else:
            highest = int(np.frombuffer(token_ids, np.intc).max())
        if highest >= self._limits.vocab_size:
            message = f"token id {highest} is not in the vocabulary of {self._limits.vocab_size}"
            raise JobRefused(INVALID, "token_ids", message)
        return token_ids

    def _render(
        self, request: JobRequest, tools: list[dict[str, Any]], calling: ToolCalling | None
    ) -> ChatPrompt:
        messages = [m.model_dump() for m in request.messages or ()]
        if self.chat is None:
            raise JobRefused(INVALID, "messages", self._no_chat)
        try:
            return self.chat.render(
                messages,
                tools,
                calling,
                chat_template_kwargs=request.chat_template_kwargs,
                add_generation_prompt=request.add_generation_prompt,
                continue_final_message=request.continue_final_message,
            )
        except RequestRejected as error:
            raise _refused(error) from None


def _refused(error: RequestRejected) -> JobRefused:
    """Return a refusal of the engine as one of a job."""
    message = str(error).removeprefix(f"{error.field}: ")
    code = FaultCode.GRAMMAR.value if isinstance(error, GrammarRejected) else INVALID
    return JobRefused(code, error.field, message)


def _take(pending: PendingPrompt, found: list[int] | Exception) -> None:
    """Take what the tokenizer made of a prompt."""
    if isinstance(found, UnicodeError | ValueError):
        pending.failure = JobRefused(INVALID, pending.field, f"cannot be tokenised: {found}")
    elif isinstance(found, Exception):
        pending.failure = found
    else:
        pending.ids = array("i", found)


def _grammar_of(request: JobRequest) -> GrammarSpec | None:
    grammar = request.grammar
    return None if grammar is None else GrammarSpec(GrammarKind(grammar.kind), grammar.source)


def _sampling_params(request: JobRequest) -> SamplingParams:
    # What the request leaves out is left out here: the checkpoint may have a default of its own.
    numbers: dict[str, Any] = {
        name: getattr(request, name) for name in CHECKPOINT_FIELDS & request.model_fields_set
    }
    return SamplingParams(
        **numbers,
        n=request.n,
        max_tokens=request.max_tokens,
        min_tokens=request.min_tokens,
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
        grammar=_grammar_of(request),
    )
