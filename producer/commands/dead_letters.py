"""`tokenbus dead`: look at dead letters, send one again as a new job, throw them away."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.commands.hints import server_url
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.terminal import visible

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.dead_letters import DeadLetter


def run_dead(
    url: str | None,
    pool: str,
    action: str,
    names: Sequence[str],
    limit: int,
    tenant: str | None = None,
) -> int:
    """Run one action of `tokenbus dead`; no names means all, where the action allows that.

    With a tenant only its letters are seen.

    Returns: 1 if a retry was refused, else 0. Raises: RequestInvalid, ServerError.
    """
    if action == "list" and limit < 1:
        raise RequestInvalid("limit", f"{limit} is below 1")
    url = server_url(url, "dead")
    return asyncio.run(_run(url, pool, action, names, limit, tenant))


async def _run(
    url: str, pool: str, action: str, names: Sequence[str], limit: int, tenant: str | None
) -> int:
    async with await AsyncClient.connect(url, pool) as client:
        letters = DeadLetters(client)
        if action == "list":
            num_shown = 0
            async for letter in letters.newest(None if tenant is not None else limit):
                if num_shown < limit and tenant in (None, letter.tenant):
                    num_shown += 1
                    print(visible(_line(letter)))
            return 0
        if names:
            chosen = [await letters.find(name, tenant) for name in names]
        else:
            found = [letter async for letter in letters.newest()]
            chosen = [letter for letter in found if tenant in (None, letter.tenant)]
        if action == "show":
            for letter in chosen:
                print(visible(_page(letter), lines=True))
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
            print(visible(f"{letter.entry_id} stays: {error}"))
            code = 1
        else:
            print(visible(f"{letter.entry_id} is job {job.job_id}"))
    return code


def _line(letter: DeadLetter) -> str:
    at = datetime.fromtimestamp(letter.at_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    named = f" for {letter.named}" if letter.named else ""
    tenant = letter.tenant or "-"
    return f"{letter.entry_id}  {at}  {letter.job_id}{named}  {tenant}  {letter.reason}"


def _page(letter: DeadLetter) -> str:
    """Return everything about a letter as JSON; its body as text, whatever bytes it has."""
    shown = {
        "entry": letter.entry_id,
        "job": letter.job_id,
        "named": letter.named,
        "tenant": letter.tenant,
        "at_ms": letter.at_ms,
        "finish": json.loads(letter.finish.dump()),
        "body": letter.body.decode(errors="replace"),
    }
    return json.dumps(shown, indent=2, ensure_ascii=False)
