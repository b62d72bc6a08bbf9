"""`tokenbus list`, `show`, `result`, `follow` and `cancel`: jobs that were submitted before."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.commands.follow import ending_code, follow
from tokenbus.producer.commands.hints import connected, server_url, tell
from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.contract.result import JobEndedEarly, JobResult
from tokenbus.producer.errors import JobUnknown, ResultTimeout
from tokenbus.producer.server.connection import retrying
from tokenbus.producer.terminal import visible
from tokenbus.producer.wait_notice import waiting_told

if TYPE_CHECKING:
    import argparse

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.client.job_list import ListedJob

# As a client does unless its settings say otherwise.
_RETRY_FOR_S = 15.0
# Of a record, as text; the request is left out unless it is asked for.
_TEXTS = ("state", "tenant", "owner", "evidence", "flag")
_NUMBERS = ("priority", "epoch", "attempts", "logged", "prompt", "output", "n", "queued", "v")
_TIMES = {"created": "created_ms", "deadline": "deadline_ms"}
_SHOWN = {"owner": "worker", "prompt": "prompt_tokens", "output": "output_tokens",
    "logged": "logged_tokens", "queued": "waiting_tokens"}  # fmt: skip


def run_jobs(args: argparse.Namespace) -> int:
    """Run one of the commands about jobs; return 0, or 1 where the job did not finish.

    Raises: JobUnknown, JobLost, RequestInvalid, ServerError.
    """
    url = server_url(args.redis, args.command)
    acts = {"list": _list, "show": _show, "result": _result, "follow": _follow, "cancel": _cancel}
    return asyncio.run(_run(url, args, acts[args.command]))


async def _run(url: str, args: argparse.Namespace, act: Any) -> int:
    async with connected(url, args.pool) as client:
        code: int = await act(client, args)
        return code


async def _list(client: AsyncClient, args: argparse.Namespace) -> int:
    states = {"states": args.state} if args.state else {}
    found = await client.list_jobs(tenant=args.tenant, limit=args.limit, **states)
    for job in found.jobs:
        print(visible(_as_json(job) if args.json else _line(job)))
    if not found.is_whole:
        tell("there may be more: name a tenant or a state, or raise --limit")
    elif not found.jobs:
        tell(f"no such job waits or runs in pool {args.pool}")
    return 0


def _line(job: ListedJob) -> str:
    worker = f"  {job.worker}" if job.worker else ""
    return (
        f"{job.state.value:<8} {job.job_id}  {job.tenant}  priority {job.priority}"
        f"  {job.age_s:.1f} s  {job.tokens} tokens{worker}"
    )


def _as_json(job: ListedJob) -> str:
    shown = {
        "job": job.job_id,
        "tenant": job.tenant,
        "state": job.state.value,
        "priority": job.priority,
        "worker": job.worker or None,
        "attempts": job.attempts,
        "age_s": round(job.age_s, 3),
        "tokens": job.tokens,
    }
    return json.dumps(shown, ensure_ascii=False)


async def _show(client: AsyncClient, args: argparse.Namespace) -> int:
    scripts = client.scripts
    known = await retrying(
        lambda: Lookup(scripts).look(args.id, 0, args.tenant), client.url, _RETRY_FOR_S
    )
    if known.record is None and known.result is None and known.events is None:
        raise JobUnknown(args.id)
    key = scripts.keys.of("job", known.place)
    redis: Any = scripts.redis
    stored = await retrying(lambda: redis.hgetall(key), client.url, _RETRY_FOR_S)
    fields = {name.decode(): value.decode(errors="replace") for name, value in stored.items()}
    address = JobAddress.parse(known.place)
    shown: dict[str, Any] = {"job": address.job_id, "tenant": args.tenant}
    shown |= {_SHOWN.get(name, name): fields[name] or None for name in _TEXTS if name in fields}
    shown |= {
        _SHOWN.get(name, name): int(float(fields[name] or 0)) for name in _NUMBERS if name in fields
    }
    shown |= {shown_as: int(fields[name]) for name, shown_as in _TIMES.items() if fields.get(name)}
    shown["log"] = None if known.events is None else _log(known.events)
    logged = (shown["log"] or {}).pop("finish", None)
    shown["finish"] = logged or _finish(known.result, fields)
    shown["has_result"] = known.result is not None and "dropped" not in fields
    shown["is_dropped"] = "dropped" in fields
    shown["has_callback"] = "callback" in fields
    if args.request:
        shown["request"] = json.loads(fields["request"]) if fields.get("request") else None
    print(visible(json.dumps(shown, indent=2, ensure_ascii=False), lines=True))
    return 0


def _finish(result: bytes | None, fields: dict[str, str]) -> Any:
    """Return how a job ended: whole from its result, else what its record says."""
    if result is not None and "dropped" not in fields:
        return json.loads(JobResult.parse(result).finish.dump())
    return json.loads(fields["finish"]) if fields.get("finish") else None


def _log(events: Any) -> dict[str, Any]:
    """Sum a log up without its text: entries, last token, and how it ended."""
    last = events[-1] if events else None
    summary: dict[str, Any] = {"entries": len(events), "last_token": last.cursor if last else 0}
    if last is not None and last.finish is not None:
        summary["finish"] = json.loads(last.finish.dump())
    return summary


async def _result(client: AsyncClient, args: argparse.Namespace) -> int:
    first, is_one = args.ids[0], len(args.ids) == 1
    shown = f"job {first} has" if is_one else f"some of {len(args.ids)} jobs have"
    with waiting_told(lambda: tell(f"{shown} not ended yet: waiting for the end")):
        found = await client.results(args.ids, args.timeout_s, tenant=args.tenant)
    codes = []
    for job_id, outcome in zip(args.ids, found, strict=True):
        result = outcome.result if isinstance(outcome, JobEndedEarly) else outcome
        if isinstance(result, JobResult):
            _print_result(result, as_json=args.json)
            codes.append(ending_code(result.finish))
            continue
        if isinstance(result, ResultTimeout):
            tell(
                f"job {job_id} has not ended; --timeout-s waits, tokenbus follow shows what it has"
            )
        elif is_one:
            raise result
        else:
            tell(f"job {job_id}: {result}")
        codes.append(1)
    return max(codes)


def _print_result(result: JobResult, *, as_json: bool) -> None:
    if as_json:
        print(visible(json.dumps(json.loads(result.dump()), ensure_ascii=False)))
        return
    for choice in result.choices:
        print(visible(choice.text, lines=True) if sys.stdout.isatty() else choice.text)


async def _follow(client: AsyncClient, args: argparse.Namespace) -> int:
    stream = client.stream(args.id, args.cursor, args.tenant)
    return ending_code(await follow(stream, as_json=args.json, is_own=False))


async def _cancel(client: AsyncClient, args: argparse.Namespace) -> int:
    if await client.cancel(args.id, args.tenant):
        print(f"job {visible(args.id)} is cancelled")
        return 0
    tell(f"job {args.id} had ended before")
    return 1
