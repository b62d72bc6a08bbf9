"""Grammar of calls: the marks of a chat format around the arguments of given tools."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallFormat, CallSyntax
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import escaped, quoted, sequence
from tokenbus.engine.grammar.calls.braced_rules import BracedRules
from tokenbus.engine.grammar.calls.parameter_rules import ParameterRules
from tokenbus.engine.grammar.calls.python_rules import PythonRules
from tokenbus.engine.grammar.watching.list_places import has_marks

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tokenbus.engine.grammar.calls.call_spelling import CallSpelling
    from tokenbus.engine.grammar.calls.value_rules import Schema

# Calls of one answer: more than any task needs, and an end for a model that would never stop.
MAX_CALLS = 32
_ID = r"/[A-Za-z0-9_-]{1,64}/"
# An id as the templates want it whose family writes ids (Mistral).
_WRITTEN_ID = "/[A-Za-z0-9]{9}/"
_NUMBER = r"/0|[1-9][0-9]{0,3}/"
# Families that write lists of calls mix these up.
_ARGUMENTS_KEYS = ("arguments", "parameters")
# Numbers and ids of calls in JSON are texts, or bare numbers.
_SOME_ID = f'("\\"" {_ID} "\\"" | {_NUMBER})'


class CallRules:
    """The rules of the calls in one way of writing them; their names begin with `prefix`."""

    def __init__(
        self,
        written: CallFormat,
        schemas: Mapping[str, Schema],
        spelling: CallSpelling,
        prefix: str,
    ) -> None:
        self._written = written
        self._schemas = schemas
        self._spelling = spelling
        self._spell = spelling.text
        self._space = spelling.space
        self._prefix = prefix

    @property
    def syntax(self) -> CallSyntax:
        """Return how one call is written."""
        return self._written.syntax

    @property
    def name_key(self) -> str:
        """Return the key of the name, where a call is an object."""
        return self._written.name_key

    @property
    def opening(self) -> str:
        """Return the text that opens calls, white space at its end included."""
        written = self._written
        return written.section_open or written.call_open

    def start(self, most: int, *, is_open: bool = False) -> str:
        """Spell calls, `most` at most, with or without the mark that opens them."""
        written = self._written
        opened = "" if is_open else self._spell(self.opening)
        list_open = self._bracket("[", written.list_open) if written.is_list else ""
        inner_open = self._spell(written.call_open) if written.section_open else ""
        first = sequence((opened, list_open, inner_open, f"{self._prefix}_call"))
        return sequence((first, *self._after_first(most)))

    def bare_start(self, most: int) -> str:
        """Spell calls that begin an answer without a mark, each told by its head."""
        firsts = (f"{self._prefix}_head_{idx} {rest}" for idx, rest in enumerate(self._rests()))
        return sequence((f"({' | '.join(firsts)})", *self._after_first(most)))

    def head_patterns(self) -> list[str]:
        r"""Return the patterns with which calls without a mark begin, one for each tool."""
        written = self._written
        first = r"\s*\[\s*" if written.is_list else r"\s*"
        if written.syntax is CallSyntax.PYTHON:
            return [rf"{first}{escaped(name)}(\.call)?\(" for name in self._schemas]
        kind = r'("type"\s*:\s*"function"\s*,\s*)?'
        key = escaped(json.dumps(written.name_key))
        return [
            rf"{first}\{{\s*{kind}{key}\s*:\s*{escaped(json.dumps(name))}" for name in self._schemas
        ]

    def heads(self) -> Iterator[str]:
        """Yield the rules of heads; each ends as soon as it can."""
        for idx, pattern in enumerate(self.head_patterns()):
            yield f"{self._prefix}_head_{idx}[lazy]: /{pattern}/"

    def _after_first(self, most: int) -> Iterator[str]:
        """Yield what stands behind the body of the first call."""
        written = self._written
        close = self._spell(written.call_close)
        yield close
        if most > 1:
            between = self._spell(written.separator) or self._space
            call_open = self._spell(written.call_open)
            again = sequence((between, call_open, f"{self._prefix}_call", close))
            yield f"({again}){{0,{most - 1}}}"
        if written.is_list:
            yield self._bracket("]", written.list_close)
        if written.section_close:
            yield sequence((self._space, self._spell(written.section_close)))

    def _bracket(self, mark: str, exact: str) -> str:
        """Spell a bracket of the list of calls."""
        if self._spelling.is_exact:
            return self._spell(exact)
        return f"{self._space} {quoted(mark)} {self._space if mark == '[' else ''}".strip()

    def rules(self) -> Iterator[str]:
        """Yield the rules of one call of any tool."""
        names = [f"{self._prefix}_call_{idx}" for idx in range(len(self._schemas))]
        yield f"{self._prefix}_call: {' | '.join(names)}"
        for rule, (name, schema) in zip(names, self._schemas.items(), strict=True):
            try:
                yield from self._body(rule, name, schema)
            except RequestRejected as error:
                told = str(error).removeprefix(f"{error.field}: ")
                raise type(error)(error.field, f"{name}: {told}") from error

    def _body(self, rule: str, name: str, schema: Schema) -> Iterator[str]:
        written, value = self._written, self._spelling.value
        match written.syntax:
            case CallSyntax.JSON_CALL:
                yield f"{rule}: {self._json_call(name, f'{rule}_arguments')}"
                yield f"{rule}_arguments: {value(schema)}"
            case CallSyntax.JSON_ARGUMENTS:
                yield f"{rule}: {sequence((*self._head(name), value(schema)))}"
            case CallSyntax.PARAMETERS:
                assert written.parameters is not None
                tags = ParameterRules(written.parameters, self._spelling, rule)
                yield f"{rule}: {sequence((*self._head(name), f'{rule}_parameters'))}"
                yield from tags.rules(f"{rule}_parameters", schema)
            case CallSyntax.PYTHON:
                arguments = PythonRules(rule, self._spelling, written.comma)
                method = "" if self._spelling.is_exact else '".call"?'
                inside = ('"("', self._space, f"{rule}_arguments", self._space, '")"')
                yield f"{rule}: {sequence((quoted(name), method, *inside))}"
                yield from arguments.rules(f"{rule}_arguments", schema)
            case CallSyntax.BRACED:
                braced = BracedRules(written.quote, self._spelling, rule)
                yield f"{rule}: {sequence((*self._head(name), f'{rule}_arguments'))}"
                yield from braced.rules(f"{rule}_arguments", schema)

    def _head(self, name: str) -> Sequence[str]:
        """Spell the name of a call with what its format has around it."""
        written = self._written
        number = f"{quoted(written.index_open)} {_NUMBER}" if written.index_open else ""
        call_id = ""
        if written.writes_id and self._spelling.is_exact:
            call_id = f"{self._spell(written.id_open)} {_WRITTEN_ID}"
        elif written.id_open and not self._spelling.is_exact:
            call_id = f"({self._spell(written.id_open)} ({_ID})?)?"
        called = quoted(written.name_prefix + name)
        return (called, number, call_id, self._spell(written.name_close))

    def _json_call(self, name: str, value: str) -> str:
        """Spell a call as an object; some models give its kind or number before the rest.

        Where the name may stand behind the arguments, these have no list that is followed: nobody
        knows yet by which schema.
        """
        written = self._written
        if self._spelling.is_exact:
            return self._one_json_call(name, value)
        colon, comma = self._punctuation()
        space = self._space
        if not written.name_key:
            return f'"{{" {space} {_key(name)} {colon} {value} {space} "}}"'
        has_kind = written.is_bare or written.is_list
        kind = f"({_key('type')} {colon} {_key('function')} {comma})?" if has_kind else ""
        number = ""
        if written.index_key:
            number = f"({_key(written.index_key)} {colon} {_SOME_ID} {comma})?"
        head = f"{_key(written.name_key)} {colon} {_key(name)}"
        pair = f"{head} {comma} {self._arguments(value)}"
        if not written.is_bare and not has_marks(self._schemas[name]):
            pair = f"({pair} | {self._arguments(value)} {comma} {head})"
        return sequence(('"{"', space, kind, number, pair, self._json_end()))

    def _one_json_call(self, name: str, value: str) -> str:
        """Spell a call as `CallFormat.write` does."""
        written, told = self._written, json.dumps(name, ensure_ascii=False)
        if not written.name_key:
            return f'{quoted(f"{{{told}: ")} {value} "}}"'
        named, key = f'"{written.name_key}": {told}', f'"{written.arguments_key}": '
        begins, ends = (key, f", {named}}}") if written.name_is_last else (f"{named}, {key}", "}")
        if not written.index_key:
            return f"{quoted(f'{{{begins}')} {value} {quoted(ends)}"
        number = quoted(f'{{"{written.index_key}": "'), _NUMBER, quoted(f'", {begins}')
        return f"{' '.join(number)} {value} {quoted(ends)}"

    def _punctuation(self) -> tuple[str, str]:
        return self._spelling.between(":", ": "), self._spelling.between(",", ", ")

    def _arguments(self, value: str) -> str:
        """Spell the arguments of a call with their key."""
        written = self._written
        keys = dict.fromkeys((written.arguments_key, *(_ARGUMENTS_KEYS if written.is_list else ())))
        return f"({' | '.join(map(_key, keys))}) {self._punctuation()[0]} {value}"

    def _json_end(self) -> str:
        """Spell the end of a call; some models give its id behind the rest."""
        colon, comma = self._punctuation()
        call_id = f"({comma} {_key('id')} {colon} {_SOME_ID})?" if self._written.is_list else ""
        return sequence((call_id, f'{self._space} "}}"'))

    def _rests(self) -> Iterator[str]:
        """Yield what stands behind the head of a call, for each tool."""
        for idx in range(len(self._schemas)):
            arguments = f"{self._prefix}_call_{idx}_arguments"
            if self._written.syntax is CallSyntax.PYTHON:
                yield f'{self._space} {arguments} {self._space} ")"'
            else:
                comma = self._punctuation()[1]
                yield sequence((comma, self._arguments(arguments), self._json_end()))


def _key(name: str) -> str:
    """Spell a string of JSON."""
    return quoted(json.dumps(name, ensure_ascii=False))
