"""The vocabulary of a pool: texts of tokens, asked of any worker, and remembered."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.producer.gateway.wire.refusals import failed, unreachable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from tokenbus.producer.client.async_client import AsyncClient

ANSWER_S = 5.0
# Tokens of a pool are believed for so long: another model may have taken its place.
_BELIEVED_S = 600.0
_MAX_KNOWN = 500_000


async def asked(client: AsyncClient, question: Mapping[str, Any]) -> dict[str, Any]:
    """Ask a worker of the client's pool.

    Raises: ApiError: what it refuses, 503 where none answers in time.
    """
    try:
        answer = await client.scripts.questions.ask(question, ANSWER_S)
    except SERVER_ERRORS:
        raise unreachable() from None
    if answer is None:
        told = f"No worker of the pool has answered within {ANSWER_S:g} s."
        raise ApiError(503, told, code="no_worker", headers={"Retry-After": "1"})
    error = answer.get("error")
    if error is not None:
        raise failed(str(error["code"]), str(error["message"]), error["field"])
    return answer


class Vocabulary:
    """The texts of the tokens of one pool, as far as they were asked for."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._texts: dict[int, str] = {}
        self._began_at = time.monotonic()

    async def texts(self, ids: Iterable[int]) -> Mapping[int, str]:
        """Return the texts of tokens, and of others; without those that no worker tells now."""
        if time.monotonic() - self._began_at > _BELIEVED_S or len(self._texts) > _MAX_KNOWN:
            self._texts, self._began_at = {}, time.monotonic()
        known = self._texts
        unknown = sorted(set(ids) - known.keys())
        if unknown:
            try:
                answer = await asked(self._client, {"kind": "texts", "ids": unknown})
            except ApiError:
                return known
            known |= zip(unknown, answer["texts"], strict=True)
        return known


def alternatives_of(entries: Sequence[Any]) -> set[int]:
    """Return the ids of the alternatives in logprobs."""
    return {token_id for entry in entries if entry for token_id, _ in entry[2]}
