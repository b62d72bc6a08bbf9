"""Dead letters of a pool: read, submitted again, deleted.

A dead letter is the request of a job that failed, or a raw entry that was no job, with the reason.
The stream keeps the newest ten thousand; bodies are cut at 64 kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.schema import JobRequest
from tokenbus.producer.errors import RequestInvalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tokenbus.producer.client.async_client import AsyncClient, Job

# As the scripts cut it.
MAX_BODY_BYTES = 65536
_PAGE = 256


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter; `at_ms` is the server's time, `tenant` empty where none is known."""

    entry_id: str
    job_id: str
    tenant: str
    finish: Finish
    body: bytes
    at_ms: int

    @property
    def reason(self) -> str:
        """Say in one line why it is here."""
        error = self.finish.error
        if error is None:
            return self.finish.reason
        field = f" ({error.field})" if error.field else ""
        return f"{error.code}{field}: {error.message}"


class DeadLetters:
    """The dead letters of the pool of one client. Calls raise what redis raises."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._redis = client.scripts.redis
        self._key = client.scripts.keys.of("dead")

    async def newest(self, limit: int | None = None) -> AsyncIterator[DeadLetter]:
        """Yield letters, the newest first."""
        bound, left = "+", limit
        while left is None or left > 0:
            count = _PAGE if left is None else min(left, _PAGE)
            page = await self._redis.xrevrange(self._key, bound, "-", count)
            for entry_id, fields in page:
                yield _letter(entry_id, fields)
            if len(page) < count:
                return
            bound = f"({page[-1][0].decode()}"
            left = None if left is None else left - len(page)

    async def find(self, name: str) -> DeadLetter:
        """Return the newest letter with this entry id or job id.

        Raises: RequestInvalid if there is none.
        """
        async for letter in self.newest():
            if name in (letter.entry_id, letter.job_id):
                return letter
        raise RequestInvalid("id", f"no dead letter is called {name}; see tokenbus dead list")

    async def retry(self, letter: DeadLetter) -> Job:
        """Submit a letter's request as a new job, then delete the letter; safe to repeat.

        The new job's id comes from the entry's, so that two tries make one job.
        Raises: RequestInvalid if the body is no whole request; what `AsyncClient.submit` raises.
        """
        if len(letter.body) >= MAX_BODY_BYTES:
            raise RequestInvalid("body", f"of {letter.entry_id} was cut at {MAX_BODY_BYTES} bytes")
        request = JobRequest.parse(letter.body)
        fresh = {"id": f"retry-{letter.entry_id}", "idempotency_key": None}
        job = await self._client.submit(request.model_copy(update=fresh))
        await self.delete([letter])
        return job

    async def delete(self, letters: Sequence[DeadLetter]) -> int:
        """Delete letters and count those that were still there."""
        if not letters:
            return 0
        return int(await self._redis.xdel(self._key, *(letter.entry_id for letter in letters)))


def _letter(entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    return DeadLetter(
        entry_id.decode(),
        fields[b"job"].decode(),
        fields[b"tenant"].decode(),
        Finish.parse(fields[b"finish"]),
        fields[b"body"],
        int(fields[b"at"]),
    )
