"""Ids of calls: the same in every process that reads the same answer."""

from __future__ import annotations

from hashlib import blake2b

_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Templates of the Mistral family refuse ids of any other length.
_ID_LENGTH = 9


def call_id(address: str, choice: int, number: int) -> str:
    """Return nine letters and digits that no other call is likely to have.

    Args:
        address: text of the job's address; offline, of what no other request is named.
        number: place of the call in its choice, from 0.
    """
    digest = blake2b(f"{address}/{choice}/{number}".encode(), digest_size=8).digest()
    left = int.from_bytes(digest, "big")
    drawn = ""
    for _ in range(_ID_LENGTH):
        left, digit = divmod(left, len(_ALPHABET))
        drawn += _ALPHABET[digit]
    return drawn
