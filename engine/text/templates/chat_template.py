"""Chat templates: the programs that come with models and write conversations, in a sandbox.

The sandbox is jinja2's for templates from strangers, with the names and filters that templates of
public models use. What a template gets is a copy of plain values, so that it may change the lists
in it, as some do.
"""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.utils import Namespace

from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.text.templates.bounded_sandbox import BoundedSandbox, RenderingEndless

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from jinja2 import Template
    from jinja2.nodes import Node
    from jinja2.parser import Parser

_MAX_REASON_CHARACTERS = 300
# What a made-up user says.
_WORDS = "probe words"


class TemplateRefused(RequestRejected):
    """The template does not take a conversation.

    `is_lacking` if it asked for what is not there, `is_endless` if its time was spent.
    """

    def __init__(self, reason: str, *, is_lacking: bool = False, is_endless: bool = False) -> None:
        self.reason = " ".join(reason.split())[:_MAX_REASON_CHARACTERS]
        super().__init__("messages", f"the model's chat template refuses them: {self.reason}")
        self.is_lacking, self.is_endless = is_lacking, is_endless


class ChatTemplate:
    """One chat template, compiled; rendering may go on in several threads."""

    def __init__(self, source: str, names: Mapping[str, Any]) -> None:
        """Compile the template.

        Args:
            names: what it may ask for beside the conversation, special tokens of the model above
                all.
        Raises: TemplateRefused if it is no template, or takes all its time for one question.
        """
        self.source = source
        self._names = dict(names)
        try:
            self._sandbox, self._template = _compiled(source)
        except TemplateSyntaxError as error:
            raise TemplateRefused(f"line {error.lineno}: {error}") from error
        # Too deep for jinja2, or for Python.
        except (RecursionError, SyntaxError) as error:
            raise TemplateRefused(f"it cannot be compiled: {error}") from error
        told = self._asked(_WORDS)
        self._takes_parts = _WORDS not in told and _WORDS in self._asked([_part(_WORDS)])
        self._is_deaf = _WORDS not in told and not self._takes_parts and self._renders()

    @property
    def is_deaf(self) -> bool:
        """True if it renders conversations without the words of their user."""
        return self._is_deaf

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = True,
        names: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text.

        Contents are texts; a template that loops over parts gets each as a part of its own.
        Raises: TemplateRefused with the template's own words.
        """
        if self._takes_parts:
            messages = [_with_parts(message) for message in messages]
        return self._rendered(messages, tools, add_generation_prompt, names)

    def _rendered(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        names: Mapping[str, Any] | None,
    ) -> str:
        given = {**self._names, **(names or {})}
        try:
            own = {
                "messages": _copied(messages),
                "tools": _copied(tools),
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
            with self._sandbox.rendering():
                return self._template.render(_copied(given) | own)
        # Templates are programs that come with the model and raise whatever they like.
        except Exception as error:
            lacks = not isinstance(error, SecurityError) and type(error) is not TemplateError
            is_endless = isinstance(error, RenderingEndless)
            raise TemplateRefused(
                str(error) or type(error).__name__,
                is_lacking=lacks and not is_endless,
                is_endless=is_endless,
            ) from error

    def _asked(self, content: Any) -> str:
        """Return a question as the template writes it, "" if it refuses.

        Raises: TemplateRefused if that takes all the time that a rendering has.
        """
        try:
            return self._rendered([{"role": "user", "content": content}], None, True, None)
        except TemplateRefused as error:
            if error.is_endless:
                raise
            return ""

    def _renders(self) -> bool:
        try:
            self._rendered([{"role": "user", "content": _WORDS}], None, True, None)
        except TemplateRefused:
            return False
        return True


class _PlainNamespace(Namespace):
    """A namespace of a template, whose names are ordinary ones."""

    def __init__(*args: Any, **names: Any) -> None:
        own, *given = args
        attributes = dict(*given, **names)
        for name in attributes:
            _check_name(name)
        Namespace.__init__(own, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


class _GenerationTag(Extension):
    """Reads `{% generation %}`, by which trainers mark what the model wrote, as its content."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it of an instance

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=16)
def _compiled(source: str) -> tuple[BoundedSandbox, Template]:
    sandbox = BoundedSandbox(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    sandbox.globals.pop("lipsum")
    sandbox.globals.update(
        raise_exception=_raise_exception,
        strftime_now=_strftime_now,
        namespace=_PlainNamespace,
        dict=_new_dict,
    )
    sandbox.filters["tojson"] = _to_json
    sandbox.filters["from_json"] = sandbox.filters["fromjson"] = json.loads
    return sandbox, sandbox.from_string(source)


def _copied(value: Any) -> Any:
    """Copy plain values; anything else, which might have methods, becomes its text."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _copied(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_copied(each) for each in value]
    return str(value)


def _part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _with_parts(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message whose content is a list of parts."""
    content = message.get("content")
    if isinstance(content, list) or "content" not in message:
        return dict(message)
    return {**message, "content": [_part(content)] if content else []}


def _check_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace has no place for {name!r}")


def _new_dict(*given: Any, **names: Any) -> dict[Any, Any]:
    return dict(*given, **names)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)  # noqa: DTZ005 - the date where the worker stands


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Write JSON as it is, where jinja2's own filter would escape it for HTML."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=(separators[0], separators[1]) if separators else None,
        sort_keys=sort_keys,
    )
