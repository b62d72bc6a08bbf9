"""Signing keys of webhooks as they are written, and the bytes that they stand for.

A key is `whsec_<base64>`, as the Standard Webhooks rules have it; any other text stands for its
bytes, as the SDK of OpenAI reads it.
"""

from __future__ import annotations

import base64
import binascii

KEY_PREFIX = "whsec_"
# Bytes of a key by the rules, and characters of any other.
_LEAST_BYTES, _MOST_BYTES = 24, 64
_MIN_PLAIN_LENGTH = 16


def key_bytes(key: str) -> bytes:
    """Return the bytes that a key stands for.

    Raises: ValueError that does not show the key: base64 that is none, or a wrong length.
    """
    if not key.startswith(KEY_PREFIX):
        if len(key) < _MIN_PLAIN_LENGTH:
            raise ValueError(f"a key has at least {_MIN_PLAIN_LENGTH} characters")
        return key.encode()
    try:
        secret = base64.b64decode(key.removeprefix(KEY_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"what follows {KEY_PREFIX} is no base64") from None
    if not _LEAST_BYTES <= len(secret) <= _MOST_BYTES:
        told = f"{_LEAST_BYTES} to {_MOST_BYTES} bytes, not {len(secret)}"
        raise ValueError(f"a key of {KEY_PREFIX} has {told}")
    return secret
