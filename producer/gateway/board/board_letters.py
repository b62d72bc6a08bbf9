"""Dead letters as the board lists them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.dead_letters import MAX_BODY_BYTES
from tokenbus.producer.contract.address import whole_tenant

if TYPE_CHECKING:
    from tokenbus.producer.client.dead_letters import DeadLetter

# Of a body that never was a job, which may hold what a job would not have kept.
_SECRET = ("cache_secret", "reply")


def letter_body(letter: DeadLetter, *, with_texts: bool) -> dict[str, Any]:
    """Return a letter; its message and its request only where texts may be read."""
    finish = letter.finish
    error = finish.error
    return {
        "entry": letter.entry_id,
        "id": letter.job_id,
        "tenant": letter.tenant,
        "whole_tenant": whole_tenant(letter.tenant),
        "named": letter.named,
        "at_ms": letter.at_ms,
        "code": error.code if error else finish.reason,
        "field": error.field if error else None,
        "message": error.message if error and with_texts else "",
        "num_bytes": len(letter.body),
        # What was cut cannot be submitted again.
        "can_retry": len(letter.body) < MAX_BODY_BYTES,
        "request": _shown(letter.body) if with_texts else None,
    }


def _shown(body: bytes) -> str:
    """Return a body for people: JSON set in lines, anything else as it came."""
    text = body.decode(errors="replace")
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(told, dict):
        told = {name: value for name, value in told.items() if name not in _SECRET}
    return json.dumps(told, indent=2, ensure_ascii=False)
