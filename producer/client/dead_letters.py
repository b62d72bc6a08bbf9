"""Dead letters of a pool: read, submitted again, deleted.

A dead letter is the request of a job that failed, or a raw entry that was no job, with the reason.
The stream keeps the newest ten thousand, and of them no more than its bytes allow (32 MiB unless
the workers say otherwise); bodies are cut at 64 kB.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.events import Finish
from tokenbus.producer.contract.schema import StoredRequest
from tokenbus.producer.errors import ProducerError, RequestInvalid
from tokenbus.producer.server.connection import retrying

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from tokenbus.producer.client.async_client import AsyncClient, Job

T = TypeVar("T")

# As the scripts cut it.
MAX_BODY_BYTES = 65536
_PAGE = 256
# As a client does unless its settings say otherwise.
_RETRY_FOR_S = 15.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One dead letter; `at_ms` is the server's time, `tenant` empty where none is known.

    A refused entry has a `job_id` of its own; `named` is the id that it asked for, empty without.
    """

    entry_id: str
    job_id: str
    tenant: str
    finish: Finish
    body: bytes
    at_ms: int
    named: str = ""

    @property
    def reason(self) -> str:
        """Say in one line why it is here."""
        error = self.finish.error
        if error is None:
            return self.finish.reason
        field = f" ({error.field})" if error.field else ""
        return f"{error.code}{field}: {error.message}"


class DeadLetters:
    """The dead letters of the pool of one client.

    Calls raise ServerUnreachable and ServerRefused.
    """

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._redis = client.scripts.redis
        self._key = client.scripts.keys.of("dead")

    async def newest(self, limit: int | None = None) -> AsyncIterator[DeadLetter]:
        """Yield letters, the newest first."""
        bound, left = "+", limit
        while left is None or left > 0:
            count = _PAGE if left is None else min(left, _PAGE)
            page = await self._ask(partial(self._redis.xrevrange, self._key, bound, "-", count))
            for entry_id, fields in page:
                yield _letter(entry_id, fields)
            if len(page) < count:
                return
            bound = f"({page[-1][0].decode()}"
            left = None if left is None else left - len(page)

    async def find(self, name: str, tenant: str | None = None) -> DeadLetter:
        """Return the newest letter with this entry id or job id, of one tenant if it is given.

        Raises: RequestInvalid if there is none.
        """
        async for letter in self.newest():
            names = (letter.entry_id, letter.job_id, letter.named)
            if name and name in names and tenant in (None, letter.tenant):
                return letter
        raise RequestInvalid("id", f"no dead letter is called {name}; see tokenbus dead list")

    async def retry(self, letter: DeadLetter) -> Job:
        """Submit a letter's request as a new job, then delete the letter; safe to repeat.

        The new job's id comes from the entry's, so that two tries make one job; no request can ask
        for such an id.
        Raises: RequestInvalid if the body is no whole request; what `AsyncClient.submit` raises.
        """
        if len(letter.body) >= MAX_BODY_BYTES:
            raise RequestInvalid("body", f"of {letter.entry_id} was cut at {MAX_BODY_BYTES} bytes")
        request = StoredRequest.parse(letter.body)
        fresh = request.model_copy(update={"idempotency_key": None})
        name = f"retry~{letter.entry_id}"
        [job] = await self._client.submit_many([fresh], reserved_ids=[name])
        if isinstance(job, ProducerError):
            raise job
        await self.delete([letter])
        return job

    async def delete(self, letters: Sequence[DeadLetter]) -> int:
        """Delete letters and count those that were still there."""
        if not letters:
            return 0
        entry_ids = [letter.entry_id for letter in letters]
        pages = [entry_ids[first : first + _PAGE] for first in range(0, len(entry_ids), _PAGE)]
        drop = self._client.scripts.queue.drop_letters
        return sum([await self._ask(partial(drop, page)) for page in pages])

    async def _ask(self, call: Callable[[], Awaitable[T]]) -> T:
        return await retrying(call, self._client.url, _RETRY_FOR_S)


def _letter(entry_id: bytes, fields: dict[bytes, bytes]) -> DeadLetter:
    address = JobAddress.parse(fields[b"job"].decode())
    return DeadLetter(
        entry_id.decode(),
        address.job_id,
        fields[b"tenant"].decode(),
        Finish.parse(fields[b"finish"]),
        fields[b"body"],
        int(fields[b"at"]),
        JobAddress.parse(fields.get(b"named", b"").decode()).job_id,
    )
