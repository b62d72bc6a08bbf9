"""Settings of chats: a template in place of the model's own, and formats that are named."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.tools import tool_template
from tokenbus.engine.text.templates.chat_template import ChatTemplate, TemplateRefused
from tokenbus.engine.text.templates.format_choice import check_format_names

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChatSettings(Protocol):
    """The settings of an engine that chats depend on; None leaves them to the model."""

    @property
    def chat_template(self) -> str | None:
        """Return the path of a template."""

    @property
    def tool_format(self) -> str | None:
        """Return the name of a call format."""

    @property
    def reasoning_format(self) -> str | None:
        """Return the name of a reasoning format."""

    @property
    def grammar_source_bytes(self) -> int | None:
        """Return how long the parameters of the tools of a request may be, in bytes."""


def check_chat_settings(settings: ChatSettings) -> None:
    """Refuse settings that no model can have. Raises: RequestRejected with the field."""
    check_format_names(settings.tool_format, settings.reasoning_format)
    if settings.chat_template is not None:
        try:
            ChatTemplate(read_chat_template(settings.chat_template), {})
        except TemplateRefused as error:
            raise RequestRejected("chat_template", error.reason) from error


def read_chat_template(path: str) -> str:
    """Return the chat template in a file. Raises: RequestRejected for the field `chat_template`."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise RequestRejected("chat_template", f"{path} cannot be read: {error}") from error


def template_sources(tokenizer: PreTrainedTokenizerBase, given: str | None) -> tuple[str, str]:
    """Return the templates of requests without tools and with them, the model's unless given.

    Raises: RequestRejected for the field `chat_template` if there is none.
    """
    if given is not None:
        return given, given
    own: Any = tokenizer.chat_template
    with_tools = tool_template(tokenizer)
    plain = own.get("default", with_tools) if isinstance(own, dict) else own
    if not isinstance(plain, str) or with_tools is None:
        raise RequestRejected("chat_template", "the model has none; --chat-template names a file")
    return plain, with_tools
