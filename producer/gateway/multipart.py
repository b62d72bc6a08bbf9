"""Uploads by multipart/form-data, read as they come: one file, and short fields around it.

Source: RFC 7578 (form data) and RFC 2046, section 5.1 (boundaries).
"""

from __future__ import annotations

import re
from email.message import Message
from typing import TYPE_CHECKING

from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MAX_HEAD_BYTES = 16 * 1024
_MAX_FIELD_BYTES = 16 * 1024
_MAX_PARTS = 64
# What RFC 2046 lets a boundary be.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,./:=? -]{1,70}")


def malformed(told: str) -> ApiError:
    """Return the error of a body that is no form."""
    return ApiError(400, f"The form cannot be read: {told}.", code="invalid_form")


def boundary_of(content_type: str) -> bytes:
    """Return the boundary that a content type names. Raises: ApiError 400."""
    message = Message()
    message["content-type"] = content_type
    given = message.get_param("boundary")
    is_form = message.get_content_type() == "multipart/form-data"
    if not is_form or not isinstance(given, str) or _BOUNDARY.fullmatch(given) is None:
        raise malformed("it has to be multipart/form-data with a boundary")
    return given.encode()


class FormUpload:
    """The form of one upload; `fields` are those that were read so far.

    Raises: ApiError 400 from every call, for a body that is no such form.
    """

    def __init__(self, body: AsyncIterator[bytes], boundary: bytes, file_field: str) -> None:
        self._body = body
        # Every delimiter but the first stands behind a line break; so it is found that way too.
        self._delimiter = b"\r\n--" + boundary
        self._buffer = bytearray(b"\r\n")
        self._file_field = file_field
        self._num_parts = 0
        self.fields: dict[str, str] = {}
        self.filename: str | None = None

    async def file_bytes(self) -> AsyncIterator[bytes]:
        """Yield the bytes of the file; fields before and behind it are read on the way."""
        async for _ in self._until_delimiter():
            # What stands before the first part is nobody's.
            continue
        while await self._has_part():
            name, filename = await self._head()
            if name == self._file_field and filename is not None:
                if self.filename is not None:
                    raise malformed(f"it has more than one {self._file_field}")
                self.filename = filename
                async for chunk in self._until_delimiter():
                    yield chunk
            else:
                self.fields[name] = await self._field(name)

    async def _has_part(self) -> bool:
        """Tell whether a part follows the delimiter that was read."""
        await self._fill(2)
        mark = bytes(self._buffer[:2])
        if mark == b"--":
            return False
        # Blanks may stand behind a boundary.
        end = await self._find(b"\r\n", _MAX_FIELD_BYTES)
        if self._buffer[:end].strip():
            raise malformed("a boundary is followed by something else")
        del self._buffer[: end + 2]
        self._num_parts += 1
        if self._num_parts > _MAX_PARTS:
            raise malformed(f"it has more than {_MAX_PARTS} parts")
        return True

    async def _head(self) -> tuple[str, str | None]:
        """Read the headers of a part; return its name, and the name of a file."""
        end = await self._find(b"\r\n\r\n", _MAX_HEAD_BYTES)
        head = bytes(self._buffer[:end]).decode("utf-8", "replace")
        del self._buffer[: end + 4]
        for line in head.split("\r\n"):
            header, _, value = line.partition(":")
            if header.strip().lower() == "content-disposition":
                name, filename = _parameter(value, "name"), _parameter(value, "filename")
                if name is not None:
                    return name, filename
        raise malformed("a part has no name")

    async def _field(self, name: str) -> str:
        value = bytearray()
        async for chunk in self._until_delimiter():
            value += chunk
            if len(value) > _MAX_FIELD_BYTES:
                raise malformed(f"the field {name[:40]} is too long")
        try:
            return value.decode()
        except UnicodeDecodeError:
            raise malformed(f"the field {name[:40]} is no text") from None

    async def _until_delimiter(self) -> AsyncIterator[bytes]:
        """Yield what stands before the next delimiter, and take that away."""
        delimiter, buffer = self._delimiter, self._buffer
        while (found := buffer.find(delimiter)) < 0:
            # The end of what is here may be the beginning of a delimiter.
            num_safe = len(buffer) - len(delimiter) + 1
            if num_safe > 0:
                chunk = bytes(buffer[:num_safe])
                del buffer[:num_safe]
                yield chunk
            await self._more()
        if found:
            yield bytes(buffer[:found])
        del buffer[: found + len(delimiter)]

    async def _find(self, mark: bytes, most: int) -> int:
        while (found := self._buffer.find(mark)) < 0:
            if len(self._buffer) > most:
                raise malformed("the head of a part is too long")
            await self._more()
        return found

    async def _fill(self, num_bytes: int) -> None:
        while len(self._buffer) < num_bytes:
            await self._more()

    async def _more(self) -> None:
        """Read on. Raises: ApiError 400 at the end of the body."""
        async for chunk in self._body:
            if chunk:
                self._buffer += chunk
                return
        raise malformed("it ends before its last boundary")


def _parameter(disposition: str, name: str) -> str | None:
    """Return a parameter of a content disposition, as browsers and clients write it."""
    extended = re.search(rf"(?:^|;)\s*{name}\*=utf-8''([^;\s]*)", disposition, re.IGNORECASE)
    if extended is not None:
        from urllib.parse import unquote

        return unquote(extended[1])
    quoted = re.search(rf'(?:^|;)\s*{name}="((?:[^"\\]|\\.)*)"', disposition, re.IGNORECASE)
    if quoted is not None:
        return re.sub(r"\\(.)", r"\1", quoted[1])
    bare = re.search(rf"(?:^|;)\s*{name}=([^;\s\"]+)", disposition, re.IGNORECASE)
    return None if bare is None else bare[1]
