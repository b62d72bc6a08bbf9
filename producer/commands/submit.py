"""`tokenbus submit`: one job from the command line, its answer streamed to the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.settings import ClientSettings
from tokenbus.producer.terminal import printable

if TYPE_CHECKING:
    import argparse

    from tokenbus.producer.client.async_client import Job
    from tokenbus.producer.contract.events import Event, Finish

# How long Ctrl-C waits for the server to take the cancel.
CANCEL_TIMEOUT_S = 3.0
_SAMPLING = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop")
_QUEUEING = ("tenant", "priority", "deadline_s", "idempotency_key", "callback_url")


def run_submit(args: argparse.Namespace) -> int:
    """Submit what the arguments say; return 0 if the job finished, else 1."""
    url = args.redis or ClientSettings().redis_url
    ServerUrl.parse(url).refuse_private("submit")
    finish = asyncio.run(_submit(url, args))
    if finish.error is not None:
        print(f"tokenbus: {finish.error.code}: {finish.error.message}", file=sys.stderr)
    elif finish.reason not in {"stop", "length"}:
        print(f"tokenbus: the job was {finish.reason}", file=sys.stderr)
    return 0 if finish.reason in {"stop", "length"} else 1


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
    async with await AsyncClient.connect(url, pool=args.pool) as client:
        job = await client.submit(**_request(args))
        try:
            return await _follow(client, job, as_json=args.json)
        except asyncio.CancelledError:
            # Ctrl-C: nobody reads any more, so the job need not run.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CANCEL_TIMEOUT_S):
                    await client.cancel(job)
            raise


async def _follow(client: AsyncClient, job: Job, *, as_json: bool) -> Finish:
    """Print the job's events until the terminal one."""
    async for event in client.stream(job):
        _print(event, as_json=as_json)
        if event.finish is not None:
            return event.finish
    raise RuntimeError(f"the stream of job {job.job_id} ended without a terminal event")


def _print(event: Event, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(event.dump(), ensure_ascii=False), flush=True)
    elif event.finish is not None:
        print(flush=True)
    else:
        text = printable(event.text) if sys.stdout.isatty() else event.text
        print(text, end="", flush=True)
