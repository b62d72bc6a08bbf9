"""Literals of Python as JSON, and JSON told from other text."""

from __future__ import annotations

import ast
import json
from typing import Any

from tokenbus.engine.chat.reading.incremental_text import IncrementalText
from tokenbus.engine.chat.reading.json_text import json_value

_WORDS = {"true": True, "false": False, "null": None}


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


def python_as_json(text: str) -> str | None:
    """Return the JSON of a literal of Python, JSON's own words included; None if it is none."""
    try:
        value = _value(ast.parse(text.strip(), mode="eval").body)
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


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
