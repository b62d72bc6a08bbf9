"""Literals of Python as JSON, and JSON told from other text."""

from __future__ import annotations

import ast
import gc
import json
import re
from typing import Any

from tokenbus.engine.chat.reading.incremental_text import IncrementalText
from tokenbus.engine.chat.reading.json_text import json_value

_WORDS = {"true": True, "false": False, "null": None}
_ESCAPE = re.compile(r"\\(.)")
# Characters that mean something behind a backslash; Python warns of others and keeps both.
_ESCAPED = frozenset("\\'\"abfnrtv01234567xNuU")
_RAW_STRING = re.compile(r"\b[rR]['\"]")


def is_json(text: str) -> bool:
    """Tell whether a text is one JSON value, not too deep, and nothing else."""
    source = IncrementalText()
    source.add(text)
    source.has_ended = True
    try:
        next(json_value(source))
    except StopIteration as ended:
        return bool(ended.value) and source.at == len(text)
    return False


def as_json(value: Any) -> str:
    """Return the JSON of a value; halves of surrogate pairs are escaped, so that it is Unicode.

    Raises: ValueError if a number is none of JSON.
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False)
    return text


def python_as_json(text: str) -> str | None:
    """Return the JSON of a literal of Python, JSON's own words included; None if it is none."""
    if not _RAW_STRING.search(text):
        text = _ESCAPE.sub(_without_warning, text)
    try:
        return as_json(_value(_parsed(text.strip())))
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _parsed(text: str) -> ast.expr:
    """Return the expression that a text is; its parser raises four kinds of errors if it is none.

    Nothing is collected meanwhile: what dies of it may log a traceback, which CPython 3.11 draws by
    parsing, and a parse amid a parse fails with a SystemError.
    """
    was_collecting = gc.isenabled()
    gc.disable()
    try:
        return ast.parse(text, mode="eval").body
    finally:
        if was_collecting:
            gc.enable()


def _without_warning(escape: re.Match[str]) -> str:
    return escape[0] if escape[1] in _ESCAPED else f"\\{escape[0]}"


def _value(node: ast.expr) -> Any:
    """Return the value of a literal. Raises: ValueError for what JSON has no value for."""
    match node:
        case ast.Constant(value=str() | bool() | int() | float() | None as value):
            return value
        case ast.Name(id=word) if word in _WORDS:
            return _WORDS[word]
        case ast.List(elts=values) | ast.Tuple(elts=values):
            return [_value(each) for each in values]
        case ast.Dict(keys=keys, values=values):
            return {_key(key): _value(value) for key, value in zip(keys, values, strict=True)}
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.UnaryOp(op=ast.UAdd(), operand=ast.Constant(value=int() | float() as value)):
            return value
    raise ValueError(ast.dump(node))


def _key(node: ast.expr | None) -> str:
    match node:
        case ast.Constant(value=str() as key):
            return key
    raise ValueError("a key of a JSON object is a string")
