"""From a constraint to the grammar library's own form, and from its errors to one line."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.json_schema import enforceable_schema, json_options
from tokenbus.engine.grammar.schema.key_watch import is_open
from tokenbus.engine.grammar.watching.list_places import ListPlaces, has_marks
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from tokenbus.engine.grammar.limits import GrammarLimits

# Where in the text of a schema the library stopped; that text is not the author's.
_PLACE_IN_TEXT = re.compile(r" at line \d+ column \d+$")
# What the library says of limits and dead ends, and what that means to the author of a grammar.
_MEANINGS = (
    ("NoExtension", "nothing can satisfy it"),
    ("too many expressions", "it is too complex: too many expressions for one token"),
    ("too many states", "it is too complex: too many states"),
    ("Too many items", "it is too ambiguous: too many parses of one token"),
    ("Current row has", "it has too many alternatives at one place"),
    ("too big", "it is too large"),
    ("nest limit", "it is nested too deep"),
    ("deeply nested", "it is nested too deep"),
    ("nesting", "it is nested too deep"),
    ("Unable to determine", "it is too complex to combine"),
    ("panic", "the grammar library failed on it"),
)
# How the library begins to tell of a pattern that it cannot read.
_REGEX_HEAD = " (in regex): regex parse error:"
# A line of a grammar as the library quotes it, and the mark below.
_QUOTED = re.compile(r"\s*(\d+ \| |\^+\s*$)")
# Line and column in the text of a grammar.
_PLACE_IN_GRAMMAR = re.compile(r"^(at )?\d+\(\d+\): ")
_MAX_REASON_CHARACTERS = 800
# Lines of a message that quote a long source keep so many characters of each end.
_LINE_HEAD, _LINE_TAIL = 120, 60


class Unreadable(GrammarRejected):
    """The library cannot read a schema: it holds a lone surrogate, or a number out of range."""


def library_grammar(spec: GrammarSpec, limits: GrammarLimits) -> str:
    """Translate a constraint into the library's form, with what may stand before it.

    Raises: as `_constraint`.
    """
    grammar = _constraint(spec, limits)
    return behind(spec.before, grammar) if spec.before else grammar


def behind(before: str, grammar: str) -> str:
    """Return a grammar of the library with what its output begins with."""
    is_lark = not grammar.lstrip().startswith("{")
    own = {"lark_grammar": grammar} if is_lark else json.loads(grammar)["grammars"][0]
    start = f"start: before @answer\n{before}\n"
    return json.dumps({"grammars": [{"lark_grammar": start}, {**own, "name": "answer"}]})


def _constraint(spec: GrammarSpec, limits: GrammarLimits) -> str:
    """Translate what the output must match.

    Raises: GrammarRejected if the source is too long, not JSON where it must be, or of a schema
        that would not be enforced.
    """
    num_bytes = spec.given_bytes
    if num_bytes is None:
        num_bytes = len(spec.source.encode(errors="surrogatepass"))
    is_choice = spec.kind is GrammarKind.CHOICE
    most = limits.choice_bytes if is_choice else limits.source_bytes
    if num_bytes > most:
        raise GrammarRejected("grammar", f"the source has {num_bytes} bytes, the limit is {most}")
    if spec.kind is GrammarKind.JSON_SCHEMA:
        # What stands behind something else is followed if somebody says where.
        is_watched = not spec.before or bool(spec.watched)
        schema = enforceable_schema(parsed_source(spec), is_watched=is_watched)
        if schema is False:
            raise GrammarRejected("grammar", "JSON schema at #: nothing can satisfy it")
        return schema_grammar({} if schema is True else schema)
    if is_choice:
        # Lark's string literals are those of JSON. One terminal: as alternatives of a rule, texts
        # that begin alike would each be a parse of their own.
        texts = " | ".join(map(json.dumps, choice_texts(spec)))
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {texts}")
    if spec.kind is GrammarKind.REGEX:
        return LLMatcher.grammar_from_regex(spec.source)
    return LLMatcher.grammar_from_lark(spec.source)


def choice_texts(spec: GrammarSpec) -> list[str]:
    """Return the texts of a choice. Raises: GrammarRejected for what is none."""
    choices = parsed_source(spec)
    is_texts = isinstance(choices, list) and all(isinstance(text, str) for text in choices)
    if not is_texts or not choices:
        raise GrammarRejected("grammar", "choice must be a JSON list of one or more strings")
    texts: list[str] = choices
    return texts


def schema_grammar(schema: Any) -> str:
    """Translate a schema that is enforceable as it stands.

    Raises: Unreadable.
    """
    try:
        text = json.dumps(schema, allow_nan=False)
        return LLMatcher.grammar_from_json_schema(text, overrides=json_options(schema))
    except ValueError as error:
        raise Unreadable("grammar", _PLACE_IN_TEXT.sub("", str(error))) from error


def lets_keys_repeat(grammar: str, *, is_watched: bool = False) -> bool:
    """Tell whether keys may come twice in what a constraint in the library's form allows.

    Of a schema that is told by the keys that it does not list; `is_watched` says it of what was
    written in Lark.
    """
    schema = _schema_of(grammar)
    return is_watched if schema is None else is_open(schema)


def list_places(grammar: str) -> ListPlaces | None:
    """Return the places of a schema in the library's form, if lists of it are marked."""
    schema = _schema_of(grammar)
    return ListPlaces(schema) if has_marks(schema) else None


def _schema_of(grammar: str) -> Any:
    """Return the schema of a constraint in the library's form, None if it is none."""
    if not grammar.startswith("{") or '"json_schema"' not in grammar:
        return None
    parts = json.loads(grammar)["grammars"]
    return next((part["json_schema"] for part in parts if "json_schema" in part), None)


def parsed_source(spec: GrammarSpec) -> Any:
    """Parse the source as JSON.

    Raises: GrammarRejected.
    """
    try:
        return json.loads(spec.source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise GrammarRejected("grammar", f"{spec.kind.value} is not JSON: {error}") from error


def _refuse_constant(name: str) -> None:
    """Raise for what Python reads beside JSON: NaN, Infinity and -Infinity."""
    raise ValueError(f"{name} is no number of JSON")


def reason_of(message: str, *, has_place: bool = True) -> str:
    """Return what an error of the library says, in one line, and what it means.

    What the library quotes is left out: the dump of its state, and the text of the grammar, which
    may be one that was made here. has_place: the line and column that it names are the author's.
    """
    lines = [line for line in message.partition("\n<")[0].strip().splitlines() if line.strip()]
    head = lines[0] if lines else ""
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    if head.endswith(_REGEX_HEAD) and told:
        # Between head and error stands a picture of the pattern.
        lines = [head.removesuffix(_REGEX_HEAD), told[-1]]
        said = ": ".join(map(_clipped, lines))
    else:
        lines = [line.strip() for line in lines if not _QUOTED.match(line)]
        said = " ".join(map(_clipped, lines))[:_MAX_REASON_CHARACTERS]
    if not has_place:
        said = _PLACE_IN_GRAMMAR.sub("", said)
    for sign, meaning in _MEANINGS:
        if sign in said:
            return f"{meaning} ({said})"
    return said


def _clipped(line: str) -> str:
    if len(line) <= _LINE_HEAD + _LINE_TAIL:
        return line
    return f"{line[:_LINE_HEAD]} … {line[-_LINE_TAIL:]}"
