"""The parts of a batch's output: rows gathered, written and named with the lines that they have."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tokenbus.producer.stored.content_store import ContentStore
    from tokenbus.producer.stored.stored_batches import StoredBatches
    from tokenbus.worker.control.batches.output_row import OutputRow

# A part is written when this much waits, or this long after its first row.
PART_BYTES, PART_S = 4 * 1024 * 1024, 0.5
_KINDS = ("output", "error")


class OutputParts:
    """Writes the rows of one run; a row counts once its part is named on the server."""

    def __init__(
        self, contents: ContentStore, batches: StoredBatches, batch_id: str, token: str
    ) -> None:
        self._contents = contents
        self._batches = batches
        self._batch_id = batch_id
        self._token = token
        self._rows: list[OutputRow] = []
        self._num_bytes = 0
        self._has_rows = asyncio.Event()
        self._is_full = asyncio.Event()
        self._has_ended = False

    def add(self, row: OutputRow) -> None:
        """Take a row."""
        self._rows.append(row)
        self._num_bytes += len(row.text)
        self._has_rows.set()
        if self._num_bytes >= PART_BYTES:
            self._is_full.set()

    def end(self) -> None:
        """Let `run` return once everything is written; no row comes after this."""
        self._has_ended = True
        self._has_rows.set()
        self._is_full.set()

    async def run(self) -> None:
        """Write parts until the end. Raises: LeaseTaken, what the store and redis raise."""
        while self._rows or not self._has_ended:
            await self._has_rows.wait()
            try:
                async with asyncio.timeout(PART_S):
                    await self._is_full.wait()
            except TimeoutError:
                pass
            await self._write()

    async def _write(self) -> None:
        """Write what waits. Raises: as `run`."""
        rows, self._rows, self._num_bytes = self._rows, [], 0
        if not self._has_ended:
            self._has_rows.clear()
            self._is_full.clear()
        if not rows:
            return
        part = secrets.token_hex(8)
        for kind in _KINDS:
            texts = [row.text for row in rows if row.is_error == (kind == "error")]
            if texts:
                name = part_name(self._batch_id, part, kind)
                await self._contents.write(name, _chunks(texts))
        num_failed = sum(row.is_error for row in rows)
        kinds = f"{int(num_failed < len(rows))}{int(num_failed > 0)}"
        numbers = [row.number for row in rows]
        await self._batches.commit(
            self._batch_id, self._token, f"{part}-{kinds}", numbers, num_failed
        )


def part_name(batch_id: str, part: str, kind: str) -> str:
    """Return where the rows of one kind of a part lie."""
    return f"parts/{batch_id}/{part}-{kind}"


def names_of_parts(batch_id: str, parts: Sequence[str], kind: str) -> list[str]:
    """Return where all rows of one kind lie, in order."""
    place = _KINDS.index(kind)
    split = [part.split("-") for part in parts]
    return [part_name(batch_id, name, kind) for name, kinds in split if kinds[place] == "1"]


async def joined_parts(contents: ContentStore, names: Sequence[str]) -> AsyncIterator[bytes]:
    """Yield the rows that lie there, one part after the other."""
    for name in names:
        async for block in contents.read(name):
            yield block


async def _chunks(texts: Sequence[bytes]) -> AsyncIterator[bytes]:
    for text in texts:
        yield text
