"""Files at a gateway: uploaded as a form, as clients do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp

if TYPE_CHECKING:
    from gateways.doors import Door


async def upload(
    running: Door, content: bytes, key: str = "", purpose: str | None = "batch", **more: Any
) -> Any:
    """Upload a file as aiohttp sends a form; return status and body."""
    form = aiohttp.FormData(quote_fields=False)
    if purpose is not None:
        form.add_field("purpose", purpose)
    form.add_field("file", content, filename="in ü.jsonl")
    for name, value in more.items():
        form.add_field(name, value)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    async with running.http.post(f"{running.url}/v1/files", data=form, headers=headers) as reply:
        return reply.status, await reply.json()
