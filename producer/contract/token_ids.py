"""The ids of a prompt: a list where people write them, packed where they are kept and sent.

Packed they are the base64 of little-endian int32. Two thousand ids are checked, written and read in
a tenth of the time that a JSON array of numbers takes.
"""

from __future__ import annotations

import sys
from array import array
from binascii import b2a_base64
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
from pydantic import Field, GetCoreSchemaHandler, SerializationInfo
from pydantic_core import CoreSchema, core_schema

from tokenbus.engine.chat.requests.bounds import TOKEN_ID

if TYPE_CHECKING:
    from collections.abc import Callable

ID_BYTES = 4
TokenId = Annotated[int, Field(ge=TOKEN_ID.low, le=TOKEN_ID.high)]
_Listed = Annotated[list[TokenId], Field(min_length=1)]
_CHECKED = list[Annotated[int, msgspec.Meta(ge=0, lt=2**31)]]
_IS_BIG_ENDIAN = sys.byteorder == "big"


def pack_ids(ids: array[int]) -> bytes:
    """Return ids as little-endian int32."""
    return _little(ids).tobytes()


def pack_text(ids: array[int]) -> str:
    """Return ids as text."""
    return b2a_base64(pack_ids(ids), newline=False).decode()


def unpack_text(text: str) -> array[int]:
    """Read ids that were written as text.

    Raises: ValueError.
    """
    try:
        # In less than half of binascii's time.
        content = msgspec.convert(text, bytes)
    except msgspec.ValidationError as error:
        raise ValueError(f"is no base64: {error}") from None
    if not content or len(content) % ID_BYTES:
        raise ValueError(f"{len(content)} bytes are no whole number of ids of {ID_BYTES} bytes")
    # The sign is the highest bit of every last byte.
    if not content[ID_BYTES - 1 :: ID_BYTES].isascii():
        raise ValueError("holds a negative id")
    return _little(array("i", content))


def _little(ids: array[int]) -> array[int]:
    """Turn the bytes of each id round where this machine's order is the other one."""
    if not _IS_BIG_ENDIAN:
        return ids
    turned = ids[:]
    turned.byteswap()
    return turned


class _Schema:
    """Reads either form, and ids that were read before; writes JSON packed."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """Let pydantic look at the numbers one by one only to name the one that is wrong."""
        del source
        return core_schema.no_info_wrap_validator_function(
            _read,
            handler.generate_schema(_Listed),
            serialization=core_schema.plain_serializer_function_ser_schema(_written, info_arg=True),
        )


def _read(given: Any, check_listed: Callable[[Any], list[int]]) -> array[int]:
    if isinstance(given, str):
        return unpack_text(given)
    if isinstance(given, array) and given.typecode == "i" and given:
        return unpack_text(pack_text(given))
    if isinstance(given, list) and given:
        try:
            return array("i", msgspec.convert(given, _CHECKED))
        except msgspec.ValidationError:
            pass
    return array("i", check_listed(given))


def _written(ids: array[int], how: SerializationInfo) -> str | array[int]:
    return pack_text(ids) if how.mode == "json" else ids


if TYPE_CHECKING:
    TokenIds = Annotated[array[int], _Schema]
else:
    # Before Python 3.12 arrays take no type at run time.
    TokenIds = Annotated[array, _Schema]
