"""Serialisation of arq's jobs and results: JSON, never pickle.

A pickle runs whatever its sender likes in the process that loads it, and arq pickles unless it is
told otherwise. Give both functions to `arq.create_pool` in a backend:

    create_pool(settings, job_serializer=pack, job_deserializer=unpack)
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tokenbus.worker.control.errors import GenerationFailed, JobNotPlain, RemoteFailure
from tokenbus.worker.logs import get_logger

_ERROR = "tokenbus:error"


def pack(value: dict[str, Any]) -> bytes:
    """Write a job or a result of arq; an exception becomes its kind and message.

    Raises: TypeError or ValueError for what JSON has no form of.
    """
    return json.dumps(value, default=_dump_error, separators=(",", ":")).encode()


def unpack(raw: bytes) -> dict[str, Any]:
    """Read what `pack` wrote. Raises: JobNotPlain, also logged, for a pickle or any other bytes."""
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        form = "pickled" if raw[:1] == b"\x80" else "no JSON object"
        message = f"the arq job is {form}; enqueue it with job_serializer=pack (docs/control.md)"
        get_logger().error("arq_job.refused", reason=message, size_bytes=len(raw))
        raise JobNotPlain(message)
    result = value.get("r")
    if isinstance(result, dict) and _ERROR in result:
        value["r"] = _load_error(result[_ERROR])
    return value


def _dump_error(value: object) -> dict[str, Any]:
    if isinstance(value, GenerationFailed):
        return {_ERROR: {"kind": "GenerationFailed", "code": value.code, "message": value.message,
            "text": value.text}}  # fmt: skip
    if isinstance(value, BaseException):
        return {_ERROR: {"kind": type(value).__name__, "message": str(value)}}
    raise TypeError(f"{type(value).__name__} has no form in JSON")


def _load_error(wire: dict[str, Any]) -> BaseException:
    """Rebuild an exception that a backend may see, by name and never by import."""
    kind, message = str(wire.get("kind")), str(wire.get("message"))
    if kind == "CancelledError":
        return asyncio.CancelledError()
    if kind == "GenerationFailed":
        return GenerationFailed(str(wire.get("code")), message, str(wire.get("text", "")))
    return RemoteFailure(kind, message)
