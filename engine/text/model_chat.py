"""The renderer of a model: made once, by settings or by the template alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.text.chat_prompt import ChatRenderer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from tokenbus.engine.text.templates.chat_settings import ChatSettings

_BY_TOKENIZER: WeakKeyDictionary[Any, tuple[Any, ChatRenderer]] = WeakKeyDictionary()


def model_chat(
    tokenizer: PreTrainedTokenizerBase,
    eos_token_ids: Sequence[int],
    settings: ChatSettings | None,
) -> tuple[ChatRenderer | None, str]:
    """Return the renderer of a model, or why it has none.

    Raises: RequestRejected for a setting that this model cannot have.
    """
    is_set = settings is not None and any(
        (settings.chat_template, settings.tool_format, settings.reasoning_format)
    )
    if tokenizer.chat_template is None and not is_set:
        return None, "this model has no chat template; send a prompt"
    try:
        if settings is not None:
            return ChatRenderer.of(tokenizer, settings, eos_token_ids), ""
        return ChatRenderer(tokenizer, eos_token_ids=eos_token_ids), ""
    except RequestRejected as error:
        if is_set:
            raise
        # The template came with the model, which answers prompts all the same.
        return None, f"this model's chat template cannot be used; send a prompt ({error})"


def renderer_of(tokenizer: PreTrainedTokenizerBase) -> ChatRenderer:
    """Return the renderer of a tokenizer by its own template, made on the first call.

    Raises: RequestRejected for the field `chat_template` if it has none.
    """
    made = _BY_TOKENIZER.get(tokenizer)
    if made is None or made[0] != tokenizer.chat_template:
        made = (tokenizer.chat_template, ChatRenderer(tokenizer))
        _BY_TOKENIZER[tokenizer] = made
    return made[1]


def chat_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], **settings: Any
) -> str:
    """Return the text of a conversation; see `ChatRenderer.render` for more."""
    return renderer_of(tokenizer).render(messages, **settings).text
