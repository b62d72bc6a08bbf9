"""The content store: bytes under names, written once, in a folder or at any fsspec URL.

What is written has a name of its own among `partial/` until it is whole, so nothing that is cut is
ever found. Names are drawn or derived by us: a name that says where else to look is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tokenbus.producer.stored.errors import StoreUnusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

_NAME = re.compile(r"[A-Za-z0-9_-]{1,96}(/[A-Za-z0-9_-]{1,96}){0,2}")
_PARTIAL = "partial"
# Small writes are gathered to this; reads take as much at once.
BLOCK_BYTES = 1024 * 1024


class _Place(Protocol):
    """Where bytes lie; every call blocks."""

    def open_new(self, name: str) -> Any: ...

    def publish(self, partial: str, name: str) -> None: ...

    def open(self, name: str) -> Any: ...

    def remove(self, name: str) -> None: ...

    def listed(self) -> Iterator[tuple[str, float]]: ...


class _Folder:
    """A folder of this machine, or one that is mounted on all."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def open_new(self, name: str) -> Any:
        path = self._root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")

    def publish(self, partial: str, name: str) -> None:
        path = self._root / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self._root / partial).replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def open(self, name: str) -> Any:
        return (self._root / name).open("rb")

    def remove(self, name: str) -> None:
        (self._root / name).unlink(missing_ok=True)

    def listed(self) -> Iterator[tuple[str, float]]:
        for path in self._root.rglob("*"):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    yield path.relative_to(self._root).as_posix(), path.stat().st_mtime


class _Remote:
    """Any file system of fsspec."""

    def __init__(self, url: str) -> None:
        try:
            from fsspec.core import url_to_fs

            self._files, self._root = url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise StoreUnusable(f"the place for files cannot be opened: {error}") from None

    def _path(self, name: str) -> str:
        return f"{self._root.rstrip('/')}/{name}"

    def open_new(self, name: str) -> Any:
        path = self._path(name)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        return self._files.open(path, "wb")

    def publish(self, partial: str, name: str) -> None:
        path = self._path(name)
        self._files.makedirs(path.rpartition("/")[0], exist_ok=True)
        self._files.mv(self._path(partial), path)

    def open(self, name: str) -> Any:
        return self._files.open(self._path(name), "rb")

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path(name))

    def listed(self) -> Iterator[tuple[str, float]]:
        root = self._root.strip("/")
        for path in self._files.find(self._root):
            with contextlib.suppress(FileNotFoundError):
                name = path.strip("/").removeprefix(root).strip("/")
                yield name, self._files.modified(path).timestamp()


class ContentStore:
    """Keeps bytes under names. Calls raise OSError, or what the place's own library raises."""

    def __init__(self, url: str) -> None:
        """Keep at a URL of fsspec, or in a folder. Raises: StoreUnusable."""
        is_remote = "://" in url and not url.startswith("file://")
        folder = Path(url.removeprefix("file://")).expanduser().absolute()
        self._place: _Place = _Remote(url) if is_remote else _Folder(folder)

    async def write(self, name: str, chunks: AsyncIterator[bytes]) -> int:
        """Write what comes, make it visible under a name, and return its bytes.

        What stood there before, from an earlier try of the same, is replaced as a whole. If the
        chunks end in an error nothing is left.
        """
        _check(name)
        partial = f"{_PARTIAL}/{secrets.token_hex(16)}"
        place, num_bytes = self._place, 0
        out = await asyncio.to_thread(place.open_new, partial)
        try:
            buffer = bytearray()
            async for chunk in chunks:
                buffer += chunk
                num_bytes += len(chunk)
                if len(buffer) >= BLOCK_BYTES:
                    await asyncio.to_thread(out.write, bytes(buffer))
                    buffer.clear()
            await asyncio.to_thread(_finish, out, bytes(buffer))
            await asyncio.to_thread(place.publish, partial, name)
        except BaseException:
            with contextlib.suppress(Exception):
                out.close()
            with contextlib.suppress(Exception):
                place.remove(partial)
            raise
        return num_bytes

    async def read(self, name: str, start: int = 0) -> AsyncIterator[bytes]:
        """Yield the bytes under a name in blocks. Raises: FileNotFoundError."""
        _check(name)
        opened = await asyncio.to_thread(self._place.open, name)
        try:
            if start:
                await asyncio.to_thread(opened.seek, start)
            while block := await asyncio.to_thread(opened.read, BLOCK_BYTES):
                yield block
        finally:
            opened.close()

    async def lines(self, name: str, max_bytes: int) -> AsyncIterator[bytes]:
        """Yield the lines under a name without their ends; one that is too long is cut past it.

        A last line without an end counts; `max_bytes` + 1 bytes tell that a line was longer.
        """
        rest, is_long = b"", False
        async for block in self.read(name):
            first, *others = block.split(b"\n")
            if not is_long:
                rest += first
            for other in others:
                yield rest[: max_bytes + 1]
                rest, is_long = other, False
            if len(rest) > max_bytes:
                rest, is_long = rest[: max_bytes + 1], True
        if rest:
            yield rest[: max_bytes + 1]

    async def remove(self, name: str) -> None:
        """Remove what lies under a name, if anything does."""
        _check(name)
        await asyncio.to_thread(self._place.remove, name)

    async def older_than(self, age_s: float) -> list[str]:
        """Return the names of what was written that long ago, unfinished writes among them."""

        def read() -> list[str]:
            before = time.time() - age_s
            return [name for name, at in self._place.listed() if at < before]

        return await asyncio.to_thread(read)


def is_partial(name: str) -> bool:
    """Tell whether a name is that of a write which was never finished."""
    return name.startswith(f"{_PARTIAL}/")


def _finish(out: Any, last: bytes) -> None:
    """Write the end and let it reach the disk, where there is one."""
    out.write(last)
    out.flush()
    try:
        descriptor = out.fileno()
    except (AttributeError, io.UnsupportedOperation):
        pass  # no local disk: closing it stores it
    else:
        os.fsync(descriptor)
    out.close()


def _check(name: str) -> None:
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!a} is no name of the store")
