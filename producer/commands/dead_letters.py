"""`tokenbus dead`: look at dead letters, send one again as a new job, throw them away."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.dead_letters import DeadLetter


def run_dead(url: str | None, pool: str, action: str, names: Sequence[str], limit: int) -> int:
    """Run one action of `tokenbus dead`; no names means all, where the action allows that.

    Returns: 1 if a retry was refused, else 0. Raises: RequestInvalid, ServerError.
    """
    url = url or ClientSettings().redis_url
    ServerUrl.parse(url).refuse_private("dead")
    return asyncio.run(_run(url, pool, action, names, limit))


async def _run(url: str, pool: str, action: str, names: Sequence[str], limit: int) -> int:
    async with await AsyncClient.connect(url, pool) as client:
        letters = DeadLetters(client)
        if action == "list":
            async for letter in letters.newest(limit):
                print(_line(letter))
            return 0
        if names:
            chosen = [await letters.find(name) for name in names]
        else:
            chosen = [letter async for letter in letters.newest()]
        if action == "show":
            for letter in chosen:
                print(_page(letter))
            return 0
        if action == "purge":
            print(f"{await letters.delete(chosen)} dead letters deleted")
            return 0
        return await _retry(letters, chosen)


async def _retry(letters: DeadLetters, chosen: Sequence[DeadLetter]) -> int:
    """Send letters again; one that is no whole request stays, and the others go on."""
    code = 0
    for letter in reversed(chosen):
        try:
            job = await letters.retry(letter)
        except RequestInvalid as error:
            print(f"{letter.entry_id} stays: {error}")
            code = 1
        else:
            print(f"{letter.entry_id} is job {job.job_id}")
    return code


def _line(letter: DeadLetter) -> str:
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return f"{letter.entry_id}  {at}  {letter.job_id}  {letter.tenant or '-'}  {letter.reason}"


def _page(letter: DeadLetter) -> str:
    """Return everything about a letter as JSON; its body as text, whatever bytes it has."""
    shown = {
        "entry": letter.entry_id,
        "job": letter.job_id,
        "tenant": letter.tenant,
        "at_ms": letter.at_ms,
        "finish": json.loads(letter.finish.dump()),
        "body": letter.body.decode(errors="replace"),
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)
