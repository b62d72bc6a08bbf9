"""Output formats as clients of other servers write them: brought to one grammar.

OpenAI says it with `response_format`, vLLM with `guided_json`, `guided_regex`, `guided_choice` and
`guided_grammar`, or with `structured_outputs`. A grammar is `{"kind": …, "source": …}`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tokenbus.engine.chat.requests.message_shapes import as_mapping
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.engine.chat.requests.value_checks import shown

ANY_OBJECT = '{"type":"object"}'
# How each is called by vLLM, within `structured_outputs` and before.
_GUIDED = {
    "guided_json": "json",
    "guided_regex": "regex",
    "guided_choice": "choice",
    "guided_grammar": "grammar",
}
_KINDS = {"regex": "regex", "choice": "choice", "grammar": "lark"}
OUTPUT_FIELDS = ("response_format", "structured_outputs", *_GUIDED)
# Options of vLLM's that ask for nothing where they are off.
_OFF = {
    "disable_fallback": None,
    "disable_any_whitespace": False,
    "disable_additional_properties": False,
    "whitespace_pattern": None,
    "json_object": False,
    "structural_tag": None,
    "backend": None,
}


def shaped_grammar(grammar: Any, path: str = "grammar") -> dict[str, Any]:
    """Return our own spelling, whose source may be a JSON value. Raises: ShapeInvalid."""
    fields = dict(as_mapping(grammar, path, "kind and source"))
    source = fields.get("source")
    if source is not None and not isinstance(source, str):
        fields["source"] = _json(source, f"{path}.source")
    return fields


def grammar_of(name: str, given: Any) -> dict[str, str] | None:
    """Return the grammar that one of `OUTPUT_FIELDS` asks for. Raises: ShapeInvalid."""
    if name == "response_format":
        return _of_format(given, name)
    if name == "structured_outputs":
        return _of_structured(given, name)
    return _of_guided(_GUIDED[name], given, name)


def _of_format(given: Any, path: str) -> dict[str, str] | None:
    if _is_model(given):
        return _schema(given, path)
    fields = as_mapping(given, path, "an object with a type")
    match fields.get("type"):
        case "text":
            return None
        case "json_object":
            # Some servers take a schema here.
            return _schema(fields.get("schema"), f"{path}.schema")
        case "json_schema":
            if fields.get("json_schema") is None and "schema" in fields:
                return _schema(fields["schema"], f"{path}.schema")
            where = f"{path}.json_schema"
            named = as_mapping(fields.get("json_schema"), where, "an object with a schema")
            unknown = set(named) - {"name", "description", "schema", "strict"}
            if unknown:
                raise ShapeInvalid(f"{where}.{min(map(str, unknown))}", "is no field of a format")
            return _schema(named.get("schema"), f"{where}.schema")
        case other:
            told = f"must be text, json_object or json_schema, got {shown(other)}"
            raise ShapeInvalid(f"{path}.type", told)


def _of_structured(given: Any, path: str) -> dict[str, str] | None:
    fields = {
        name: value
        for name, value in as_mapping(given, path, "an object").items()
        if value is not None and not (name in _OFF and value == _OFF[name])
    }
    if fields.get("json_object") is True:
        fields = {name: value for name, value in fields.items() if name != "json_object"}
        fields.setdefault("json", json.loads(ANY_OBJECT))
    for name in fields:
        if name not in ("json", *_KINDS):
            raise ShapeInvalid(f"{path}.{name}", "is not known here")
    if len(fields) > 1:
        raise ShapeInvalid(path, f"asks for {' and for '.join(sorted(fields))}; give one")
    for name, value in fields.items():
        return _of_guided(name, value, f"{path}.{name}")
    return None


def _of_guided(kind: str, given: Any, path: str) -> dict[str, str]:
    if kind == "json":
        return _schema(given, path)
    if kind == "choice":
        if not isinstance(given, (list, tuple)) or not all(isinstance(x, str) for x in given):
            raise ShapeInvalid(path, "must be a list of texts")
        if not given:
            raise ShapeInvalid(path, "must hold at least one text")
        return {"kind": "choice", "source": _json(list(given), path)}
    if not isinstance(given, str):
        raise ShapeInvalid(path, "must be text")
    return {"kind": _KINDS[kind], "source": given}


def _schema(given: Any, path: str) -> dict[str, str]:
    """Return the grammar of a schema: an object, its JSON text, or a model of pydantic."""
    if given is None:
        return {"kind": "json_schema", "source": ANY_OBJECT}
    if _is_model(given):
        given = given.model_json_schema()
    if isinstance(given, str):
        try:
            json.loads(given)
        except (ValueError, RecursionError):
            raise ShapeInvalid(path, "must be a JSON schema, got a text that is no JSON") from None
        return {"kind": "json_schema", "source": given}
    if not isinstance(given, (Mapping, bool)):
        raise ShapeInvalid(path, f"must be a JSON schema, got {type(given).__name__}")
    return {"kind": "json_schema", "source": _json(given, path)}


def _is_model(given: Any) -> bool:
    return isinstance(given, type) and hasattr(given, "model_json_schema")


def _json(value: Any, path: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError):
        raise ShapeInvalid(path, "is no JSON value") from None
