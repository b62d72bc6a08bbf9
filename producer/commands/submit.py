"""`tokenbus submit`: one job from the command line, its answer streamed to the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from tokenbus.producer.commands.follow import ending_code, follow
from tokenbus.producer.commands.hints import connected, server_url, tell_of_workers

if TYPE_CHECKING:
    import argparse

    from tokenbus.producer.contract.events import Finish

# How long Ctrl-C waits for the server to take the cancel.
CANCEL_TIMEOUT_S = 3.0
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop")
_QUEUEING = ("tenant", "priority", "deadline_s", "idempotency_key", "callback_url")


def run_submit(args: argparse.Namespace) -> int:
    """Submit what the arguments say; return 0 if the job finished, else 1."""
    url = server_url(args.redis, "submit")
    return ending_code(asyncio.run(_submit(url, args)))


def _request(args: argparse.Namespace) -> dict[str, Any]:
    """Turn arguments into the fields of a request; those that were not given are left out."""
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    given = {name: getattr(args, name) for name in (*_SAMPLING, *_QUEUEING)}
    request = {name: value for name, value in given.items() if value is not None}
    if args.raw:
        return request | {"prompt": prompt}
    system = [{"role": "system", "content": args.system}] if args.system else []
    return request | {"messages": [*system, {"role": "user", "content": prompt}]}


async def _submit(url: str, args: argparse.Namespace) -> Finish:
    async with connected(url, args.pool) as client:
        job = await client.submit(**_request(args))
        try:
            await tell_of_workers(client, args.pool)
            return await follow(client.stream(job), as_json=args.json)
        except asyncio.CancelledError:
            # Ctrl-C: nobody reads any more, so the job need not run.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await client.cancel(job)
            raise
