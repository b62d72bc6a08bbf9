"""Files of owners: whole or not there, bounded, and nobody else's."""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.producer.stored.content_store import ContentStore
from tokenbus.producer.stored.derived_ids import draw_batch_id, draw_file_id, file_of_batch
from tokenbus.producer.stored.errors import NotStored, StoreFull
from tokenbus.producer.stored.stored_files import FileFields, FileLimits, StoredFiles

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

MIB = 1024 * 1024


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    """Give bytes as they come from a client."""
    for part in parts:
        yield part


def names_under(folder: Path) -> list[str]:
    """List the files below a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


async def joined(blocks: AsyncIterator[bytes]) -> bytes:
    """Read to the end."""
    return b"".join([block async for block in blocks])


@pytest.fixture
def owner() -> str:
    """Give an owner that no other test has."""
    return secrets.token_hex(6)


@pytest.fixture(params=["folder", "fsspec"])
def files(request: pytest.FixtureRequest, client: AsyncClient, tmp_path: Path) -> StoredFiles:
    """Give a store in a folder, by its path and by a URL of fsspec."""
    url = str(tmp_path) if request.param == "folder" else f"local://{tmp_path}"
    limits = FileLimits(file_bytes=3 * MIB, owner_bytes=5 * MIB)
    return StoredFiles(client.scripts.redis, ContentStore(url), limits)


async def kept(files: StoredFiles, owner: str, content: bytes = b"x", **fields: Any) -> str:
    """Keep a file and return its id."""
    told = FileFields(**({"filename": "in.jsonl", "purpose": "batch"} | fields))
    return (await files.create(owner, chunks(content), told)).id


async def test_file_is_read_as_it_was_written(files: StoredFiles, owner: str) -> None:
    """Bytes, name and purpose come back, from the place and the server alone."""
    parts = [os.urandom(700_000) for _ in range(3)]
    record = await files.create(owner, chunks(*parts), FileFields("ü/../x", "batch"))
    found = await files.get(owner, record.id)
    assert found == record
    assert (found.num_bytes, found.filename) == (2_100_000, "ü/../x")
    assert await joined(files.read(found)) == b"".join(parts)


async def test_cut_upload_leaves_nothing(files: StoredFiles, owner: str, tmp_path: Path) -> None:
    """A client that goes away in the middle leaves no file, no bytes and no place taken."""

    async def cut() -> AsyncIterator[bytes]:
        yield b"x" * 2 * MIB
        # What has been written so far stands under no name of a file.
        assert not any(name.startswith(owner) for name in names_under(tmp_path))
        raise ConnectionResetError

    for _ in range(4):
        with pytest.raises(ConnectionResetError):
            await files.create(owner, cut(), FileFields("a", "batch"))
    assert names_under(tmp_path) == []
    page = await files.page(owner, after=None, limit=9, ascending=False, purpose=None)
    assert page.items == []
    await kept(files, owner, b"x" * 3 * MIB)


async def test_disk_that_fails_is_told_before_a_file_is_there(
    files: StoredFiles, owner: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What may not have reached the disk stands under no name."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        await kept(files, owner)
    assert names_under(tmp_path) == []


async def test_bytes_are_bounded_by_file_and_owner(files: StoredFiles, owner: str) -> None:
    """What would be too much is refused while it comes, uploads beside it counted; none else's."""
    with pytest.raises(StoreFull):
        await files.create(owner, chunks(*[b"x" * MIB] * 4), FileFields("a", "batch"))
    first = await kept(files, owner, b"x" * 2 * MIB)
    waits, goes_on = asyncio.Event(), asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield b"x" * 2 * MIB
        waits.set()
        await goes_on.wait()

    upload = asyncio.create_task(files.create(owner, slow(), FileFields("slow", "batch")))
    await waits.wait()
    with pytest.raises(StoreFull):
        await kept(files, owner, b"x" * 2 * MIB)
    await kept(files, f"{owner}2", b"x" * 2 * MIB)
    goes_on.set()
    await upload
    with pytest.raises(StoreFull):
        await kept(files, owner, b"x" * 2 * MIB)
    await files.remove(owner, first)
    await kept(files, owner, b"x" * 2 * MIB)


async def test_file_of_another_is_as_unknown_as_none(files: StoredFiles, owner: str) -> None:
    """Another's file, one that never was and what is no id are answered alike, and stay."""
    file_id = await kept(files, owner)
    for wrong in (file_id, draw_file_id(), "file-1", "../" + file_id, f"{owner}/{file_id}", ""):
        for call in (files.get, files.remove):
            with pytest.raises(NotStored):
                await call("other", wrong)
    page = await files.page("other", after=None, limit=9, ascending=False, purpose=None)
    assert page.items == []
    assert (await files.get(owner, file_id)).num_bytes == 1


@pytest.mark.parametrize(
    "name", ["../x", "a/../x", "/etc/passwd", "a//b", "", ".", "a/b/c/d", "a\x00", "a/b\n", "~/x"]
)
async def test_name_cannot_leave_the_place(files: StoredFiles, name: str) -> None:
    """Whatever stands where a name is expected, nothing outside is read, written or removed."""
    with pytest.raises(ValueError, match="no name"):
        await files.contents.write(name, chunks(b"x"))
    with pytest.raises(ValueError, match="no name"):
        await joined(files.contents.read(name))
    with pytest.raises(ValueError, match="no name"):
        await files.contents.remove(name)


async def test_list_is_told_in_pages(files: StoredFiles, owner: str) -> None:
    """Pages join to the list in either order, without what another purpose has or is deleted."""
    ids = [await kept(files, owner) for _ in range(5)]
    await kept(files, owner, purpose="user_data")
    await files.remove(owner, ids.pop(2))
    for ascending in (True, False):
        found: list[str] = []
        after, has_more = None, True
        while has_more:
            page = await files.page(
                owner, after=after, limit=2, ascending=ascending, purpose="batch"
            )
            found += [record.id for record in page.items]
            after, has_more = found[-1], page.has_more
        assert found == (ids if ascending else ids[::-1])
    page = await files.page(owner, after=draw_file_id(), limit=2, ascending=True, purpose=None)
    assert (page.items, page.has_more) == ([], False)


async def test_output_is_written_again_by_who_goes_on(files: StoredFiles, owner: str) -> None:
    """A batch's file that was written before a crash is one file, counted once."""
    file_id = file_of_batch(draw_batch_id(), "output")
    for _ in range(2):
        record = await files.create_output(
            owner, file_id, chunks(b"a\n", b"b\n"), filename="out.jsonl", lives_s=60
        )
    assert (record.id, record.purpose) == (file_id, "batch_output")
    assert await joined(files.read(record)) == b"a\nb\n"
    page = await files.page(owner, after=None, limit=9, ascending=False, purpose=None)
    assert [each.id for each in page.items] == [file_id]


async def test_sweep_removes_what_expired_or_was_left(
    files: StoredFiles, owner: str, tmp_path: Path
) -> None:
    """Files past their time and bytes without a record go; a file that lives stays."""
    stays = await kept(files, owner)
    gone = await kept(files, owner, lives_s=-1)
    left = draw_file_id()
    await files.contents.write(f"{owner}/{left}", chunks(b"x"))
    (tmp_path / "partial").mkdir(exist_ok=True)
    (tmp_path / "partial" / secrets.token_hex(16)).write_bytes(b"half")
    with pytest.raises(NotStored):
        await files.get(owner, gone)
    await files.sweep(left_after_s=-5)
    assert names_under(tmp_path) == [f"{owner}/{stays}"]


async def test_lines_are_read_over_blocks(files: StoredFiles, owner: str) -> None:
    """Lines of every length come back, the last without an end too; one too long is cut."""
    lines = [b"a" * size for size in (0, 1, 900_000, 1_200_000, 5, 0, 3)]
    name = f"{owner}/lines"
    await files.contents.write(name, chunks(b"\n".join(lines)))
    found = [line async for line in files.contents.lines(name, 1_000_000)]
    assert found == [line[:1_000_001] for line in lines]
