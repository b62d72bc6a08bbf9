"""Requests in other spellings: read through the door that offline API and queue share.

What is wrong with a request is told in the same sentences as offline, by the path under which the
sender wrote it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import from_json

from tokenbus.engine.chat.requests.request_rules import UNKNOWN_FIELD, check_values
from tokenbus.engine.chat.requests.request_shapes import Shaped, shaped
from tokenbus.engine.chat.requests.shape_error import ShapeInvalid
from tokenbus.producer.contract.keys import KNOWN_VERSIONS, versions_text
from tokenbus.producer.errors import RequestInvalid, SchemaMismatch

if TYPE_CHECKING:
    from collections.abc import Mapping

T = TypeVar("T", bound=BaseModel)


def read_fields(model: type[T], given: Mapping[str, Any]) -> T:
    """Check a request given as Python values. Raises: RequestInvalid, SchemaMismatch."""
    version = given.get("v")
    if version is not None and (type(version) is not int or version not in KNOWN_VERSIONS):
        raise _mismatch(version)
    try:
        request = shaped(given)
    except ShapeInvalid as error:
        raise RequestInvalid(_printable(error.field), _printable(error.message)) from None
    try:
        return model.model_validate(request.fields)
    except ValidationError as error:
        raise invalid(error, request) from None


def read_text(model: type[T], text: bytes | str, error: ValidationError | None = None) -> T:
    """Check a request given as JSON, which in our own spelling has `error`.

    Raises: RequestInvalid, SchemaMismatch.
    """
    told = None if error is None else invalid(error)
    if isinstance(told, SchemaMismatch):
        raise told
    given = _parsed(text)
    if told is not None and not isinstance(given, dict):
        raise told
    return read_fields(model, given)


def _parsed(text: bytes | str) -> Any:
    """Parse JSON, half a surrogate pair too, which is refused by its field; None for no JSON."""
    try:
        return from_json(text)
    except ValueError as error:
        if "hex escape" not in str(error):
            return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def invalid(error: ValidationError, request: Shaped | None = None) -> RequestInvalid:
    """Turn the first finding into one sentence that names the field."""
    first = error.errors(include_url=False, include_context=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    # Of a union the path names the member that was tried, which is no field.
    path = [str(part) for part in first["loc"] if not str(part).startswith("literal[")]
    if path and path[0] == "v":
        return _mismatch(first["input"])
    if request is not None:
        try:
            check_values(request)
        except ShapeInvalid as found:
            return RequestInvalid(_printable(request.told(found.field)), _printable(found.message))
    if not path and first["type"] == "value_error" and ": " in message:
        head, message = message.split(": ", 1)
        path = [head]
    if first["type"] == "extra_forbidden":
        message = UNKNOWN_FIELD if len(path) == 1 else "is not known here"
    field = ".".join(path) or "job"
    return RequestInvalid(
        _printable(field if request is None else request.told(field)), _printable(message)
    )


def _mismatch(given: Any) -> SchemaMismatch:
    shown = given if isinstance(given, int) and abs(given) < 10**9 else "of another kind"
    return SchemaMismatch("v", f"the request {versions_text(shown)}")


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
