"""Files of owners: records on the server, bytes in the content store.

A file is there once its record is: the bytes are whole by then. What the record of an earlier try
has left, and bytes without a record, are removed by the control service.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.stored import stored_keys
from tokenbus.producer.stored.content_store import is_partial
from tokenbus.producer.stored.derived_ids import draw_file_id, is_file_id
from tokenbus.producer.stored.errors import NotStored, StoreFull
from tokenbus.producer.stored.file_record import FileRecord
from tokenbus.producer.stored.paging import Page, page_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from redis.asyncio import Redis

    from tokenbus.producer.stored.content_store import ContentStore

# Of what is uploaded, so much is counted beforehand; and for how long without another step.
_STEP_BYTES = 8 * 1024 * 1024
_UPLOAD_MS = 600_000
# Bytes without a record were left by a process that died; younger ones may be about to get one.
LEFT_AFTER_S = 24 * 3600.0

# What an owner has, with what is being uploaded; refused if it would be more than it may.
_RESERVE = """#!lua flags=allow-oom
local owner, upload, bytes, now, until_ms, most = unpack(ARGV)
local used = tonumber(redis.call('HGET', KEYS[1], owner) or 0)
for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
  local size, at = string.match(redis.call('HGET', KEYS[2], name), '(%d+) (%d+)')
  if tonumber(at) < tonumber(now) then
    redis.call('HDEL', KEYS[2], name)
  elseif name ~= upload then
    used = used + size
  end
end
if used + bytes > tonumber(most) then
  return 0
end
redis.call('HSET', KEYS[2], upload, bytes .. ' ' .. until_ms)
redis.call('PEXPIREAT', KEYS[2], until_ms)
return 1
"""
# A record is written once; of an output that is written again the first stays.
_COMMIT = """#!lua flags=allow-oom
local owner, id, record, bytes, created, expires = unpack(ARGV)
redis.call('HDEL', KEYS[2], id)
if redis.call('SET', KEYS[1], record, 'NX') then
  redis.call('ZADD', KEYS[3], created, id)
  redis.call('HINCRBY', KEYS[4], owner, bytes)
  if expires ~= '' then
    redis.call('ZADD', KEYS[5], expires, id)
  end
end
return redis.call('GET', KEYS[1])
"""
_REMOVE = """#!lua flags=allow-oom
if redis.call('DEL', KEYS[1]) == 0 then
  return 0
end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREM', KEYS[4], ARGV[2])
if redis.call('HINCRBY', KEYS[3], ARGV[1], -ARGV[3]) <= 0 then
  redis.call('HDEL', KEYS[3], ARGV[1])
end
return 1
"""


@dataclass(frozen=True, slots=True)
class FileLimits:
    """Bytes that a file, and all files of one owner, may take."""

    file_bytes: int = 200 * 1024 * 1024
    owner_bytes: int = 10 * 1024**3


@dataclass(slots=True)
class FileFields:
    """What is told of a file beside its bytes; `lives_s` None for one that stays."""

    filename: str = ""
    purpose: str = ""
    lives_s: int | None = None


class StoredFiles:
    """The files of all owners. Calls raise what redis and the content store raise."""

    def __init__(self, redis: Redis, contents: ContentStore, limits: FileLimits) -> None:
        # Untyped: redis-py states some of its types wrongly.
        self._redis: Any = redis
        self.contents = contents
        self.limits = limits

    async def create(
        self,
        owner: str,
        chunks: AsyncIterator[bytes],
        told: FileFields,
    ) -> FileRecord:
        """Keep what comes as a new file; what is told of it counts once all has come.

        Raises: StoreFull.
        """
        file_id = draw_file_id()
        try:
            num_bytes = await self.contents.write(
                f"{owner}/{file_id}", self._counted(owner, file_id, chunks)
            )
        except BaseException:
            await self._redis.hdel(stored_keys.uploads(owner), file_id)
            raise
        return await self._commit(owner, file_id, told, num_bytes)

    async def create_output(
        self, owner: str, file_id: str, chunks: AsyncIterator[bytes], *, filename: str, lives_s: int
    ) -> FileRecord:
        """Keep what a batch has written, under an id of its own. Safe to repeat.

        It is never refused: the work is done. What it takes counts for what comes after it.
        """
        num_bytes = await self.contents.write(f"{owner}/{file_id}", chunks)
        told = FileFields(filename, "batch_output", lives_s)
        return await self._commit(owner, file_id, told, num_bytes)

    async def _commit(
        self,
        owner: str,
        file_id: str,
        told: FileFields,
        num_bytes: int,
    ) -> FileRecord:
        now_ms = time.time_ns() // 1_000_000
        now_s = now_ms // 1000
        expires_at = None if told.lives_s is None else now_s + told.lives_s
        record = FileRecord(
            file_id, owner, told.filename, told.purpose, num_bytes, now_s, expires_at
        )
        stored = await self._redis.eval(
            _COMMIT,
            5,
            stored_keys.file(file_id),
            stored_keys.uploads(owner),
            stored_keys.files(owner),
            stored_keys.file_bytes(),
            stored_keys.file_expiries(),
            *(owner, file_id, record.dump(), num_bytes, now_ms, expires_at or ""),
        )
        return FileRecord.parse(stored)

    async def get(self, owner: str, file_id: str) -> FileRecord:
        """Return the record of an owner's file. Raises: NotStored."""
        stored = await self._redis.get(stored_keys.file(file_id)) if is_file_id(file_id) else None
        record = None if stored is None else FileRecord.parse(stored)
        if record is None or record.owner != owner:
            raise NotStored("file", file_id)
        if record.expires_at is not None and record.expires_at <= time.time():
            await self._remove(record)
            raise NotStored("file", file_id)
        return record

    async def page(
        self, owner: str, *, after: str | None, limit: int, ascending: bool, purpose: str | None
    ) -> Page[FileRecord]:
        """Return a page of an owner's files, newest first unless they are to ascend."""

        async def read(file_ids: list[str]) -> list[FileRecord]:
            stored = await self._redis.mget([stored_keys.file(each) for each in file_ids])
            records = [FileRecord.parse(each) for each in stored if each is not None]
            now = time.time()
            return [
                record
                for record in records
                if (purpose is None or record.purpose == purpose)
                and (record.expires_at is None or record.expires_at > now)
            ]

        key = stored_keys.files(owner)
        return await page_of(self._redis, key, read, after, limit, ascending=ascending)

    async def read(self, record: FileRecord) -> AsyncIterator[bytes]:
        """Yield the bytes of a file."""
        async for block in self.contents.read(record.content):
            yield block

    async def remove(self, owner: str, file_id: str) -> None:
        """Delete an owner's file. Raises: NotStored."""
        await self._remove(await self.get(owner, file_id))

    async def _remove(self, record: FileRecord) -> None:
        await self._redis.eval(
            _REMOVE,
            4,
            stored_keys.file(record.id),
            stored_keys.files(record.owner),
            stored_keys.file_bytes(),
            stored_keys.file_expiries(),
            *(record.owner, record.id, record.num_bytes),
        )
        await self.contents.remove(record.content)

    async def sweep(self, left_after_s: float = LEFT_AFTER_S) -> int:
        """Remove files that have expired and bytes that no record names; return how many."""
        num_removed = 0
        expired = await self._redis.zrangebyscore(
            stored_keys.file_expiries(), "-inf", time.time(), start=0, num=1000
        )
        for file_id in expired:
            stored = await self._redis.get(stored_keys.file(file_id.decode()))
            if stored is not None:
                await self._remove(FileRecord.parse(stored))
                num_removed += 1
        for name in await self.contents.older_than(left_after_s):
            owner, _, file_id = name.partition("/")
            is_file = is_file_id(file_id) and owner and not is_partial(name)
            if is_partial(name) or (
                is_file and not await self._redis.exists(stored_keys.file(file_id))
            ):
                await self.contents.remove(name)
                num_removed += 1
        return num_removed

    async def _counted(
        self, owner: str, file_id: str, chunks: AsyncIterator[bytes]
    ) -> AsyncIterator[bytes]:
        """Pass chunks on as long as the owner may have them. Raises: StoreFull."""
        num_bytes = reserved = 0
        async for chunk in chunks:
            num_bytes += len(chunk)
            if num_bytes > self.limits.file_bytes:
                raise StoreFull("a file", self.limits.file_bytes)
            if num_bytes > reserved:
                reserved = await self._reserve(owner, file_id, num_bytes)
            yield chunk
        await self._reserved(owner, file_id, num_bytes)

    async def _reserve(self, owner: str, file_id: str, num_bytes: int) -> int:
        """Count what has come, and a step more if there is room. Raises: StoreFull."""
        for wanted in (num_bytes + _STEP_BYTES, num_bytes):
            if await self._reserved(owner, file_id, wanted):
                return wanted
        raise StoreFull("the files of one owner", self.limits.owner_bytes)

    async def _reserved(self, owner: str, file_id: str, num_bytes: int) -> bool:
        now_ms = time.time_ns() // 1_000_000
        most = self.limits.owner_bytes
        answer = await self._redis.eval(
            _RESERVE,
            2,
            stored_keys.file_bytes(),
            stored_keys.uploads(owner),
            *(owner, file_id, num_bytes, now_ms, now_ms + _UPLOAD_MS, most),
        )
        return bool(answer)
