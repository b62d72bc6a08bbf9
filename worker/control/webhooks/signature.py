"""Webhook signatures: HMAC-SHA256 over `<timestamp>.<body>`, one `v1` per key of the tenant.

Two keys at once let a receiver change keys without losing a call.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

HEADER = "tokenbus-signature"


def sign(keys: Sequence[str], timestamp_s: int, body: bytes) -> str:
    """Return the header's value: `t=<seconds since 1970>,v1=<hex>[,v1=<hex>]`."""
    message = f"{timestamp_s}.".encode() + body
    digests = (hmac.new(key.encode(), message, hashlib.sha256).hexdigest() for key in keys)
    return ",".join([f"t={timestamp_s}", *(f"v1={digest}" for digest in digests)])
