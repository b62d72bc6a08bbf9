"""Webhook signatures: by the Standard Webhooks rules, and in the form of the release before.

The rules sign `<id>.<seconds>.<body>` with HMAC-SHA256; `webhook-signature` has one `v1,<base64>`
per key of the tenant, so that a receiver may change keys without losing a call. The form before
signed `<seconds>.<body>` with the key's text and is sent beside it where a setting asks for it.
Source: github.com/standard-webhooks/standard-webhooks, its specification.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import TYPE_CHECKING

from tokenbus.worker.control.signing_key import key_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

EARLIER_HEADER = "tokenbus-signature"


def signed_headers(
    keys: Sequence[str], message_id: str, timestamp_s: int, body: bytes
) -> dict[str, str]:
    """Return the three headers of the rules. `message_id` is the same at every try."""
    message = f"{message_id}.{timestamp_s}.".encode() + body
    digests = (hmac.new(key_bytes(key), message, hashlib.sha256).digest() for key in keys)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(each).decode()}" for each in digests),
    }


def earlier_signature(keys: Sequence[str], timestamp_s: int, body: bytes) -> str:
    """Return the header's value before the rules: `t=<seconds since 1970>,v1=<hex>[,v1=<hex>]`."""
    message = f"{timestamp_s}.".encode() + body
    digests = (hmac.new(key.encode(), message, hashlib.sha256).hexdigest() for key in keys)
    return ",".join([f"t={timestamp_s}", *(f"v1={digest}" for digest in digests)])
