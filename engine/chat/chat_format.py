"""Chat formats: how a family of models writes an answer, its calls and its reasoning."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_formats import CALL_FORMATS
from tokenbus.engine.chat.reasoning_format import REASONING_FORMATS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tokenbus.engine.chat.call_format import CallFormat
    from tokenbus.engine.chat.reasoning_format import ReasoningFormat
    from tokenbus.engine.chat.written_message import WrittenCall

_NONE = "none"
# Marks that frame an answer and say nothing: never shown.
_FRAMES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "command-a": (
            *("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            *("<|START_TEXT|>", "<|END_TEXT|>"),
        ),
        "granite-3": ("<response>", "</response>"),
    }
)
# The one format whose parts are messages with a header of their own.
_HARMONY = "harmony"


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How an answer is written: calls and reasoning, each in a format of its own or in none.

    name: `<call format>/<reasoning format>`, `none` for a part that is missing; `format_named`
        gives the format back from it, so that it can travel in a job's record.
    frame: marks that are never shown.
    has_channels: an answer is a row of messages, each with a header (gpt-oss).
    """

    name: str
    calls: CallFormat | None = None
    reasoning: ReasoningFormat | None = None
    frame: tuple[str, ...] = ()
    has_channels: bool = False

    @property
    def texts(self) -> tuple[str, ...]:
        """Return the texts in which the format's marks stand; reading needs all of them.

        Those of a model's added tokens that occur in one of them must be part of an answer's text.
        """
        calls = self.calls.texts if self.calls else ()
        reasoning = (
            (*self.reasoning.opens, *self.reasoning.closes) if self.reasoning is not None else ()
        )
        channels = (
            ("<|start|>", "<|channel|>", "<|constrain|>", "<|message|>", "<|end|>", "<|return|>")
            if self.has_channels
            else ()
        )
        return tuple(dict.fromkeys((*calls, *reasoning, *self.frame, *channels)))

    def write_calls(self, calls: Sequence[WrittenCall]) -> str:
        """Write complete calls as the model would.

        Raises: ValueError if the format has no calls, or arguments are no JSON object.
        """
        if self.calls is None:
            raise ValueError(f"the chat format {self.name} has no calls")
        return self.calls.write(calls)


def chat_format(calls: str, reasoning: str) -> ChatFormat:
    """Return the format that is put together from a call format and a reasoning format.

    Args:
        calls: a name of `CALL_FORMATS`, or `none`.
        reasoning: a name of `REASONING_FORMATS`, or `none`.
    Raises: KeyError for another name.
    """
    name = f"{calls}/{reasoning}"
    thoughts = None if reasoning == _NONE else REASONING_FORMATS[reasoning]
    frame = (*_FRAMES.get(calls, ()), *(thoughts.frame if thoughts else ()))
    return ChatFormat(
        name,
        None if calls == _NONE else CALL_FORMATS[calls],
        thoughts,
        tuple(dict.fromkeys(frame)),
        has_channels=_HARMONY in (calls, reasoning),
    )


_FAMILIES = {
    "hermes": ("hermes", _NONE),
    "qwen2.5": ("hermes", _NONE),
    "qwen3": ("hermes", "think"),
    "qwq": ("hermes", "think-in-prompt"),
    "qwen3-coder": ("qwen3-coder", _NONE),
    "qwen3.5": ("qwen3-coder", "think-in-prompt"),
    "nemotron-3": ("qwen3-coder", "think-in-prompt"),
    "llama-3": ("llama-3", _NONE),
    "llama-4": ("llama-4", _NONE),
    "llama-4-json": ("llama-4-json", _NONE),
    "mistral": ("mistral", _NONE),
    "mistral-small-3.2": ("mistral-call-id", _NONE),
    "magistral": ("mistral-args", "mistral"),
    "deepseek-v3": ("deepseek-v3", _NONE),
    "deepseek-r1": ("deepseek-v3", "think-in-prompt"),
    "deepseek-v3.1": ("deepseek-v3.1", "think-in-prompt"),
    "deepseek-v3.2": ("deepseek-v3.2", "think-in-prompt"),
    "deepseek-v4": ("deepseek-v4", "think-in-prompt"),
    "gpt-oss": ("harmony", "harmony"),
    "granite-20b": ("granite-20b", _NONE),
    "granite-3.2": ("granite-3", "granite-3.2"),
    "granite-3.3": ("granite-3", "think"),
    "granite-4": ("hermes", _NONE),
    "command-r": ("command-r", _NONE),
    "command-a": ("command-a", "command-a"),
    "phi-4-mini": ("phi-4-mini", _NONE),
    "phi-4-reasoning": (_NONE, "think"),
    "kimi-k2": ("kimi-k2", "kimi"),
    "glm-4": ("glm-4", "think"),
    "minimax-m2": ("minimax-m2", "think-in-prompt"),
    "seed-oss": ("seed-oss", "seed"),
    "functionary-v3.1": ("functionary-v3.1", _NONE),
    "functionary-v3.2": ("functionary-v3.2", _NONE),
    "gemma-3": ("gemma-3", _NONE),
    "xlam": ("xlam", _NONE),
    "smollm3": ("smollm3", "think"),
    "nemotron-v2": ("nemotron-v2", "think-in-prompt"),
    "lfm2": ("lfm2", _NONE),
    "apertus": ("apertus", "apertus"),
    "apriel-1.5": ("jamba", "apriel-1.5"),
    "apriel-1.6": ("jamba", "apriel"),
    "ernie-4.5": ("hermes", "think-response"),
    "exaone-4": ("smollm3", "think"),
    "exaone-deep": (_NONE, "exaone-deep"),
    "firefunction-v2": ("functools", _NONE),
    "functiongemma": ("functiongemma", _NONE),
    "gemma-4": ("gemma-4", "gemma-4"),
    "gigachat-3.1": ("gigachat-3.1", _NONE),
    "hunyuan": ("jamba", "think-answer"),
    "hunyuan-3": ("hunyuan-3", "hunyuan-3"),
    "internlm-2": ("internlm-2", _NONE),
    "internlm-2.5": ("internlm", "think"),
    "jamba": ("jamba", _NONE),
    "longcat": ("longcat", _NONE),
    "minicpm-4": ("minicpm-4", "minicpm-4"),
    "minicpm-5": ("minicpm-5", "think"),
    "minimax-m1": ("minimax-m1", "think"),
    "olmo-3": ("olmo-3", "think"),
    "step-3": ("step-3", "think-in-prompt"),
}
# Formats by family of models.
FORMATS: Mapping[str, ChatFormat] = MappingProxyType(
    {family: chat_format(*parts) for family, parts in _FAMILIES.items()}
)


def format_named(name: str) -> ChatFormat:
    """Return the format of that name: a family's, or `<call format>/<reasoning format>`.

    Raises: KeyError for an unknown name.
    """
    if name in FORMATS:
        return FORMATS[name]
    calls, _, reasoning = name.partition("/")
    return chat_format(calls, reasoning or _NONE)
