"""`tokenbus pause` and `tokenbus resume`: let the workers of a pool take no jobs, or go on."""

from __future__ import annotations

import asyncio

from tokenbus.producer.commands.hints import connected, server_url


def run_pause(url: str | None, pool: str, *, is_paused: bool) -> int:
    """Pause or resume a pool and return 0. Raises: ServerError."""
    asyncio.run(_run(server_url(url, "pause" if is_paused else "resume"), pool, is_paused))
    if is_paused:
        print(f"pool {pool} is paused: jobs are accepted and wait, those that run go on")
    else:
        print(f"pool {pool} goes on")
    return 0


async def _run(url: str, pool: str, is_paused: bool) -> None:
    async with connected(url, pool) as client:
        await (client.pause() if is_paused else client.resume())
