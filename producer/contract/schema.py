"""The request as it travels: one JSON object, of wire version 1 or 2.

It is one file because it is one schema: the request, and the parts that are named in it alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)

from tokenbus.engine.chat.requests.bounds import (
    LOGIT_BIAS,
    MAX_BAD_WORD_LENGTH,
    MAX_BAD_WORDS,
    MAX_GRAMMAR_LENGTH,
    MAX_LOGIT_BIAS,
    MAX_METADATA,
    MAX_MODEL_LENGTH,
    MAX_STOP_IDS,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    MAX_TOOLS,
    NUMBERS,
    PRIORITY,
    REASONING_TOKENS,
    ROLE_PATTERN,
)
from tokenbus.engine.chat.requests.json_values import check_json
from tokenbus.engine.chat.requests.request_rules import TOOL_NAME_PATTERN, check_together
from tokenbus.engine.chat.requests.request_shapes import Shaped, is_plain
from tokenbus.producer.contract.address import DEFAULT_TENANT
from tokenbus.producer.contract.bounds import CHECKPOINT_FIELDS, DEFAULT_PRIORITY, DEFAULTS
from tokenbus.producer.contract.callback_url import check_callback_url
from tokenbus.producer.contract.keys import (
    EXTENDED_REQUEST,
    JOB_ID_PATTERN,
    KNOWN_VERSIONS,
    NAME_PATTERN,
    WIRE_VERSION,
)
from tokenbus.producer.contract.spellings import invalid, read_fields, read_text
from tokenbus.producer.contract.token_ids import TokenId, TokenIds

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_WAIT_S = 30 * 24 * 3600.0
SEED_BITS = 63
# Bytes per token of English text under the vocabularies of current models; rounded down so that
# the estimate errs to the safe side.
BYTES_PER_TOKEN = 3
# Tokens a chat template adds around one message.
TEMPLATE_TOKENS = 8

Name = Annotated[str, Field(pattern=NAME_PATTERN)]


def _check_text(text: str) -> str:
    """Check that UTF-8 carries a text; what came as JSON always passes."""
    if not text.isascii():
        text.encode()
    return text


def _check_secret(secret: SecretStr) -> SecretStr:
    """Check the same of a secret, without showing it."""
    try:
        secret.get_secret_value().encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which UTF-8 does not carry") from None
    return secret


Text = Annotated[str, AfterValidator(_check_text)]
# A free JSON value: see `engine.chat.requests.json_values`.
JsonObject = Annotated[dict[str, Any], AfterValidator(check_json)]
Stop = Annotated[Text, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Bias = Annotated[float, Field(ge=LOGIT_BIAS.low, le=LOGIT_BIAS.high)]
BadWord = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_BAD_WORD_LENGTH)]


def _within(name: str) -> Any:
    """Return the field of a number, with its default and within its bounds."""
    bound, default = NUMBERS[name], DEFAULTS[name]
    if bound.is_open:
        return Field(default=default, gt=bound.low, le=bound.high)
    return Field(default=default, ge=bound.low, le=bound.high)


Secret = Annotated[SecretStr, Field(min_length=16, max_length=256), AfterValidator(_check_secret)]
CallbackUrl = Annotated[Text, Field(max_length=2048), AfterValidator(check_callback_url)]

_NOT_DUMPED = {"v", "cache_secret"}
# Fields that may contradict others, and those that alone never do.
_RELATED = frozenset(
    {
        "tools", "tool_choice", "grammar", "min_tokens", "chat_template_kwargs",
        "continue_final_message", "max_reasoning_tokens",
    }
)  # fmt: skip
_RELATED_TO = ("max_tokens", "add_generation_prompt")
# Fields that the first readers of version 2 do not know, by default; nor is a 0 of `max_tokens`.
_EXTENDED: dict[str, Any] = {
    "chat_template_kwargs": {},
    "add_generation_prompt": True,
    "continue_final_message": False,
    "max_reasoning_tokens": None,
}
_STRICT = ConfigDict(
    extra="forbid", strict=True, frozen=True, allow_inf_nan=False, hide_input_in_errors=True
)


class Message(BaseModel):
    """One turn of a chat."""

    model_config = _STRICT

    role: Annotated[str, Field(pattern=ROLE_PATTERN)]
    content: Text | None = None
    name: Text | None = None
    reasoning_content: Text | None = None
    tool_calls: list[JsonObject] | None = None
    tool_call_id: Text | None = None


class Grammar(BaseModel):
    """A constraint on the whole output; `source` is JSON for `json_schema` and `choice`."""

    model_config = _STRICT

    kind: Literal["json_schema", "regex", "choice", "lark"]
    source: Text = Field(min_length=1, max_length=MAX_GRAMMAR_LENGTH)


class ToolFunction(BaseModel):
    """A function that the model may call; `parameters` is the JSON schema of its arguments."""

    model_config = _STRICT

    name: str = Field(pattern=TOOL_NAME_PATTERN)
    description: Text | None = None
    parameters: JsonObject = Field(default_factory=dict)
    strict: bool | None = None


class Tool(BaseModel):
    """A tool as chat APIs spell it; arguments satisfy their schema whatever `strict` says."""

    model_config = _STRICT

    type: Literal["function"] = "function"
    function: ToolFunction


class NamedTool(BaseModel):
    """A `tool_choice` that asks for calls of one tool."""

    model_config = _STRICT

    name: str = Field(pattern=TOOL_NAME_PATTERN)


class JobRequest(BaseModel):
    """A generation job: one of prompt, messages or token_ids, and how to sample.

    `build` and `parse` take it as clients of other servers write it too (docs/requests.md): these
    are the fields that come of that. `model` is checked by the worker that gets the job, and None
    is whatever model the pool has. `max_tokens` 0 computes the prompt alone, for its logprobs.
    `max_reasoning_tokens` closes the reasoning of an answer, None never does.
    `token_ids` is a list, or the base64 of little-endian int32, as which it is stored.
    `deadline_s` and `not_before_s` count from the moment the server accepts the job. Sampling
    fields mean what they mean in the engine; `seed` None is drawn when the job is submitted. With
    `tools` and a `tool_choice` of auto, required or {"name": …}, what is called is one of them with
    arguments that satisfy its schema; none leaves the tools out of the prompt.
    `callback_url` gets a signed POST from the control service once the job has ended.
    A `cache_group` is shared with another tenant's jobs of the same group and `cache_secret`, of
    which only a digest is kept; without a secret it is the tenant's own (`contract.cache_scope`).
    `v` is the wire version, which the job's events and result keep.
    """

    model_config = _STRICT

    v: int = Field(default=WIRE_VERSION, ge=KNOWN_VERSIONS[0], le=KNOWN_VERSIONS[-1])
    id: Annotated[str, Field(pattern=JOB_ID_PATTERN)] | None = None
    prompt: Text | None = None
    messages: list[Message] | None = Field(default=None, min_length=1)
    token_ids: TokenIds | None = None
    tenant: Name = DEFAULT_TENANT
    priority: int = Field(default=DEFAULT_PRIORITY, ge=PRIORITY.low, le=PRIORITY.high)
    deadline_s: float | None = Field(default=None, gt=0, le=MAX_WAIT_S)
    not_before_s: float | None = Field(default=None, ge=0, le=MAX_WAIT_S)
    idempotency_key: Text | None = Field(default=None, min_length=1, max_length=256)
    cache_group: Name | None = None
    cache_secret: Secret | None = None
    metadata: dict[Text, Text] = Field(default_factory=dict, max_length=MAX_METADATA)
    traceparent: Text | None = Field(default=None, max_length=128)
    callback_url: CallbackUrl | None = None
    model: Text | None = Field(default=None, min_length=1, max_length=MAX_MODEL_LENGTH)

    n: int = _within("n")
    max_tokens: int = _within("max_tokens")
    min_tokens: int = _within("min_tokens")
    temperature: float = _within("temperature")
    top_k: int = _within("top_k")
    top_p: float = _within("top_p")
    min_p: float = _within("min_p")
    repetition_penalty: float = _within("repetition_penalty")
    presence_penalty: float = _within("presence_penalty")
    frequency_penalty: float = _within("frequency_penalty")
    logit_bias: dict[TokenId, Bias] = Field(default_factory=dict, max_length=MAX_LOGIT_BIAS)
    bad_words: list[BadWord] = Field(default_factory=list, max_length=MAX_BAD_WORDS)
    seed: int | None = _within("seed")
    stop: list[Stop] = Field(default_factory=list, max_length=MAX_STOPS)
    include_stop: bool = False
    stop_token_ids: list[TokenId] = Field(default_factory=list, max_length=MAX_STOP_IDS)
    ignore_eos: bool = False
    logprobs: int | None = _within("logprobs")
    prompt_logprobs: int | None = _within("prompt_logprobs")
    grammar: Grammar | None = None
    tools: list[Tool] | None = Field(default=None, min_length=1, max_length=MAX_TOOLS)
    tool_choice: Literal["auto", "none", "required"] | NamedTool = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: JsonObject = Field(default_factory=dict)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    max_reasoning_tokens: int | None = Field(
        default=None, ge=REASONING_TOKENS.low, le=REASONING_TOKENS.high
    )

    @model_validator(mode="after")
    def _check_whole(self) -> Self:
        """Check what no single field can tell."""
        inputs = [self.prompt, self.messages, self.token_ids]
        if sum(given is not None for given in inputs) != 1:
            raise ValueError("prompt: give exactly one of prompt, messages and token_ids")
        if self.cache_secret is not None and (self.cache_group is None or self.v == 1):
            raise ValueError("cache_secret: only together with cache_group, from wire version 2 on")
        if self.model_fields_set & _RELATED:
            check_together(self._related(), is_chat=self.messages is not None)
        return self

    def _related(self) -> dict[str, Any]:
        """Return the fields that have to do with each other, as they came."""
        related = {name: getattr(self, name) for name in (*_RELATED, *_RELATED_TO)}
        tools, choice = related["tools"], related["tool_choice"]
        related["tools"] = [{"function": {"name": tool.function.name}} for tool in tools or ()]
        if isinstance(choice, NamedTool):
            related["tool_choice"] = {"name": choice.name}
        if self.grammar is not None:
            related["grammar"] = {"kind": self.grammar.kind}
        return related

    @classmethod
    def build(cls, **fields: Any) -> Self:
        """Check a request given as Python values, in any of the spellings that are known.

        Raises: RequestInvalid naming the field; SchemaMismatch for another wire version.
        """
        return cls.of_fields(fields)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Check a request given as a mapping, as `build` does."""
        if not is_plain(fields):
            return read_fields(cls, fields)
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise invalid(error, Shaped(dict(fields))) from None

    def checked(self) -> Self:
        """Check a request again: `model_copy` and `model_construct` of pydantic check nothing.

        Raises: RequestInvalid naming the field; SchemaMismatch.
        """
        try:
            return self.model_validate(
                {name: getattr(self, name) for name in self.model_fields_set}
            )
        except ValidationError as error:
            raise invalid(error) from None

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Check a request given as JSON, in any of the spellings that are known.

        Raises: RequestInvalid naming the field (`job` if it is no JSON object); SchemaMismatch.
        """
        try:
            request = cls.model_validate_json(text)
        except ValidationError as error:
            return read_text(cls, text, error)
        # Calls are free values to the schema, and the door knows their shapes.
        has_calls = any(m.tool_calls or m.role == "function" for m in request.messages or ())
        return read_text(cls, text) if has_calls else request

    def dump(self) -> str:
        """Return the JSON that is stored and sent; defaults and the secret are left out.

        Defaults that were given stay where the checkpoint may have others.
        """
        # What was not set has its default; to look only at the rest saves a fifth.
        given = self.model_fields_set - _NOT_DUMPED
        wire = self.model_dump_json(exclude_defaults=True, include=given)
        for name in sorted(CHECKPOINT_FIELDS & given):
            if getattr(self, name) == DEFAULTS[name]:
                wire = f'{wire[:-1]}{"," if len(wire) > 2 else ""}"{name}":{DEFAULTS[name]}}}'
        return f'{{"v":{self.v}' + ("}" if wire == "{}" else "," + wire[1:])

    @property
    def stored_version(self) -> int:
        """The version that it says where it is stored: that of the first who can read it."""
        is_known = self.max_tokens > 0 and all(
            getattr(self, name) == default for name, default in _EXTENDED.items()
        )
        return self.v if is_known or self.v == 1 else EXTENDED_REQUEST

    def estimate_prompt_tokens(self) -> int:
        """Estimate the prompt's length from its bytes; exact for token ids."""
        if self.token_ids is not None:
            return len(self.token_ids)
        if self.prompt is not None:
            return len(self.prompt.encode("utf-8", "replace")) // BYTES_PER_TOKEN + 1
        texts = [m.model_dump_json(exclude_defaults=True) for m in self.messages or ()]
        if self.tool_choice != "none":
            texts += [tool.model_dump_json(exclude_none=True) for tool in self.tools or ()]
        num_bytes = sum(len(text.encode()) for text in texts)
        return num_bytes // BYTES_PER_TOKEN + TEMPLATE_TOKENS * len(texts)


class StoredRequest(JobRequest):
    """A request as the queue keeps it: `cache_key` stands for the secret, which is not kept."""

    model_config = _STRICT

    v: int = Field(default=WIRE_VERSION, ge=KNOWN_VERSIONS[0], le=EXTENDED_REQUEST)
    cache_key: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")] | None = None

    @classmethod
    def of(cls, request: JobRequest, cache_key: str) -> Self:
        """Turn a checked request into what is kept of it."""
        fields = dict(request) | {"cache_secret": None, "cache_key": cache_key}
        return cls.model_construct(request.model_fields_set | {"cache_key"}, **fields)

    @classmethod
    def parse(cls, text: bytes | str) -> Self:
        """Read what was stored, which has one spelling alone."""
        try:
            request = cls.model_validate_json(text)
        except ValidationError as error:
            raise invalid(error) from None
        if request.v <= WIRE_VERSION:
            return request
        return request.model_copy(update={"v": WIRE_VERSION})
