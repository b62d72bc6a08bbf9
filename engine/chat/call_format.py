"""Call formats: the way a family of models writes its calls, as plain values."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.engine.chat.written_message import WrittenCall


# Characters of strings that stand between marks of their own, where a family has such marks.
_RAW = frozenset("<&\n")


class CallSyntax(StrEnum):
    """How one call says its name and its arguments; `CallFormat` has the forms."""

    JSON_CALL = "json_call"
    JSON_ARGUMENTS = "json_arguments"
    PARAMETERS = "parameters"
    PYTHON = "python"
    BRACED = "braced"


@dataclass(frozen=True, slots=True)
class ParameterTags:
    """Marks around one argument: `open` name `name_close` value `close`.

    A string stands there as it is, any other value as JSON. `string_name_close` takes the place of
    `name_close` before a string, where a family tells the two apart; otherwise the tool's schema
    decides what a value is, as it does behind `untyped_name_close`, which is only read.
    raw_open, raw_close: around a string with line breaks, `<` or `&` in it, between the tags.
    """

    open: str
    name_close: str
    close: str
    string_name_close: str = ""
    untyped_name_close: str = ""
    raw_open: str = ""
    raw_close: str = ""


@dataclass(frozen=True, slots=True)
class CallFormat:
    """How calls are written.

    Written out, with `(…)*` for each further call:

        section_open "[" call ( separator call )* "]" section_close      brackets if `is_list`
        call:  call_open  body  call_close
        body:  JSON_CALL       {index_key: "0", name_key: name, arguments_key: {…}}
               JSON_ARGUMENTS  name_prefix name [index_open 0] [id_open id] name_close {…}
               PARAMETERS      name_prefix name name_close ( parameter )*
               PYTHON          name(key=value, …)
               BRACED          name_prefix name {key:value,…}  keys bare, sorted; strings in `quote`

    All texts are those that the model writes, white space included; the reader takes any white
    space where they have some or where two of them meet. Without `section_open` and `call_open` a
    call may only begin the answer: it has no mark.
    is_parallel: the family writes several calls in one answer.
    has_text_before: content may stand before the calls; behind them it is read, but not expected.
    name_key: empty where the name itself is the key of the arguments: `{name: {…}}` (Apertus).
    comma: between the arguments of a call in Python.
    name_is_last: the name stands behind the arguments of a JSON call.
    index_key, index_open: the number of the call, from 0, as a JSON key before the name or behind
        the name.
    id_open: before the id of a call, behind the name; read where it stands, written if `writes_id`.
    list_open, list_close: the brackets, with the white space inside of them.
    keeps_id: prefix, name and number are the id of the call, for readers too (Kimi K2).
    quote: the mark around strings of a braced call, which have no escapes.
    content_name: a name that stands for content (Functionary v3.2: `all`).
    opens_in_prompt: the prompt ends in `call_open`, so that an answer begins behind it.
    also_read: other ways in which models of the family write calls; never written.
    """

    name: str
    syntax: CallSyntax
    section_open: str = ""
    section_close: str = ""
    is_list: bool = False
    list_open: str = "["
    list_close: str = "]"
    call_open: str = ""
    call_close: str = ""
    separator: str = ""
    name_prefix: str = ""
    name_close: str = ""
    name_key: str = "name"
    arguments_key: str = "arguments"
    comma: str = ", "
    name_is_last: bool = False
    index_key: str = ""
    index_open: str = ""
    id_open: str = ""
    writes_id: bool = False
    keeps_id: bool = False
    parameters: ParameterTags | None = None
    quote: str = ""
    is_parallel: bool = True
    has_text_before: bool = True
    content_name: str = ""
    opens_in_prompt: bool = False
    also_read: tuple[CallFormat, ...] = ()

    @property
    def is_bare(self) -> bool:
        """Tell whether no mark opens the calls."""
        return not (self.section_open or self.call_open)

    @property
    def texts(self) -> tuple[str, ...]:
        """Return all texts that calls are put together from; a model may have tokens for them."""
        tags = self.parameters
        own = (
            *(self.section_open, self.section_close, self.call_open, self.call_close),
            *(self.separator, self.name_prefix, self.name_close, self.index_open, self.id_open),
            self.quote,
            *((tags.open, tags.name_close, tags.string_name_close, tags.close) if tags else ()),
        )
        others = (text for other in self.also_read for text in other.texts)
        return tuple(dict.fromkeys(text for text in (*own, *others) if text.strip()))

    def write(self, calls: Sequence[WrittenCall]) -> str:
        """Write complete calls as the model would; the reader reads them back.

        Strings between parameter tags or quotes have no escapes: one that holds the closing mark
        does not come back.
        Raises: ValueError if the arguments of a call are no JSON object.
        """
        return "".join(text for _, text in self.pieces(calls))

    def pieces(self, calls: Sequence[WrittenCall]) -> list[tuple[str, str]]:
        """Return what calls are written with: texts, each with the name of its field.

        The name is that of a field here or in the tags, "" for values.
        Raises: as `write`.
        """
        if not calls:
            return []
        pieces = [("section_open", self.section_open)]
        if self.is_list:
            pieces.append(("list_open", self.list_open))
        for index, call in enumerate(calls):
            if index:
                pieces.append(("separator", self.separator))
            pieces.append(("call_open", self.call_open))
            pieces += self._body(call, index)
            pieces.append(("call_close", self.call_close))
        if self.is_list:
            pieces.append(("list_close", self.list_close))
        pieces.append(("section_close", self.section_close))
        return [piece for piece in pieces if piece[1]]

    def id_of(self, name: str, number: int) -> str:
        """Return the id of a call in a family that keeps it (`keeps_id`)."""
        return f"{self.name_prefix}{name}{self.index_open}{number}"

    def head(self, name: str) -> str:
        """Write what stands before the arguments of a single call, of a format that has them last.

        It is for `JSON_ARGUMENTS` without numbers and ids.
        """
        return f"{self.section_open}{self.call_open}{self.name_prefix}{name}{self.name_close}"

    def _body(self, call: WrittenCall, index: int) -> list[tuple[str, str]]:
        arguments = json.loads(call.arguments)
        if not isinstance(arguments, dict):
            message = f"arguments of {call.name} are no JSON object: {call.arguments[:80]}"
            raise ValueError(message)  # noqa: TRY004 - it is the text that is wrong
        prefix, name = ("name_prefix", self.name_prefix), ("", call.name)
        match self.syntax:
            case CallSyntax.JSON_CALL:
                return [("", self._object(call, index))]
            case CallSyntax.JSON_ARGUMENTS:
                told = [prefix, name]
                if self.index_open:
                    told += [("index_open", self.index_open), ("", str(index))]
                if self.writes_id:
                    told += [("id_open", self.id_open), ("", call.id)]
                return [*told, ("name_close", self.name_close), ("", call.arguments)]
            case CallSyntax.PARAMETERS:
                tagged = [piece for each in arguments.items() for piece in self._parameter(*each)]
                return [prefix, name, ("name_close", self.name_close), *tagged]
            case CallSyntax.PYTHON:
                pairs = [f"{key}={_python(value)}" for key, value in arguments.items()]
                return [("", f"{call.name}({self.comma.join(pairs)})")]
            case CallSyntax.BRACED:
                return [prefix, name, ("", self._braced(arguments))]

    def _object(self, call: WrittenCall, index: int) -> str:
        """Write a call as an object with its name in it."""
        if not self.name_key:
            return f"{{{_json(call.name)}: {call.arguments}}}"
        number = f'"{self.index_key}": "{index}", ' if self.index_key else ""
        pair = f'"{self.name_key}": {_json(call.name)}', f'"{self.arguments_key}": {call.arguments}'
        return f"{{{number}{', '.join(reversed(pair) if self.name_is_last else pair)}}}"

    def _braced(self, value: Any) -> str:
        match value:
            case str():
                return f"{self.quote}{value}{self.quote}"
            case list():
                return f"[{','.join(map(self._braced, value))}]"
            case dict():
                members = sorted(value.items(), key=lambda member: str(member[0]).lower())
                return f"{{{','.join(f'{key}:{self._braced(each)}' for key, each in members)}}}"
        return _json(value)

    def _parameter(self, name: str, value: Any) -> list[tuple[str, str]]:
        tags = self.parameters
        if tags is None:
            raise ValueError(f"the call format {self.name} lacks its parameter tags")
        is_text = isinstance(value, str)
        key = "string_name_close" if is_text and tags.string_name_close else "name_close"
        written = value if is_text else _json(value)
        if is_text and tags.raw_open and not _RAW.isdisjoint(value):
            written = f"{tags.raw_open}{value}{tags.raw_close}"
        told = [("tags.open", tags.open), ("", name), (f"tags.{key}", getattr(tags, key))]
        return [*told, ("", written), ("tags.close", tags.close)]


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _python(value: Any) -> str:
    """Write a value of JSON as a literal of Python; strings as JSON, whose escapes are Python's."""
    match value:
        case str():
            return _json(value)
        case list():
            return f"[{', '.join(_python(each) for each in value)}]"
        case dict():
            pairs = ", ".join(f"{_json(key)}: {_python(each)}" for key, each in value.items())
            return f"{{{pairs}}}"
    return repr(value)
