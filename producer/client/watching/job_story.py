"""One job as the pool knows it: where it stands, its timeline, and where asked for its text."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tokenbus.producer.client.reading.lookup import Lookup
from tokenbus.producer.contract.result import JobResult
from tokenbus.producer.scripts.timeline import EndedJob, Stamp, parse_stamps

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tokenbus.producer.contract.events import Finish
    from tokenbus.producer.scripts import Scripts

_NUMBERS = ("priority", "epoch", "attempts", "logged", "prompt", "output", "n", "v")


@dataclass(frozen=True, slots=True)
class JobTexts:
    """What a job was asked and what it has answered; a request that is gone is None."""

    request: Mapping[str, Any] | None
    answers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class JobStory:
    """A job as the pool has it; times are the server's in ms, 0 where they are not known.

    state: of its record, `done` where only its result is left.
    num_tokens: logged so far, over all choices.
    finish: how it ended, None while it has not.
    numbers: of its record, as `tokenbus show` names them; fewer once it is done.
    is_listed: whether its timeline is known: a job that ended long ago has none.
    """

    job_id: str
    tenant: str
    state: str
    owner: str = ""
    created_ms: int = 0
    ended_ms: int = 0
    deadline_ms: int = 0
    flag: str = ""
    num_tokens: int = 0
    stamps: tuple[Stamp, ...] = ()
    is_listed: bool = True
    finish: Finish | None = None
    numbers: Mapping[str, int] = field(default_factory=dict)
    has_result: bool = False
    texts: JobTexts | None = None


async def job_story(
    scripts: Scripts, job_id: str, tenant: str, ended: Iterable[EndedJob], *, with_texts: bool
) -> JobStory | None:
    """Read a job; None where nothing is known of it. `ended` are jobs that the pool remembers.

    Raises: what a call on the server raises.
    """
    known = await Lookup(scripts).look(job_id, 0, tenant)
    row = next((job for job in ended if (job.job_id, job.tenant) == (job_id, tenant)), None)
    if known.record is None and known.result is None and known.events is None and row is None:
        return None
    # Untyped: redis-py states some of its types wrongly.
    redis: Any = scripts.redis
    stored = await redis.hgetall(scripts.keys.of("job", known.place))
    told = {name.decode(): value.decode(errors="replace") for name, value in stored.items()}
    result = None if known.result is None or "dropped" in told else JobResult.parse(known.result)
    events = known.events or []
    finish = events[-1].finish if events else None
    is_done = told.get("state", "done") == "done"
    return JobStory(
        job_id=job_id,
        tenant=tenant,
        state=told.get("state", "done"),
        owner=told.get("owner", "") or (row.owner if row else ""),
        created_ms=_whole(told.get("created")) or (row.created_ms if row else 0),
        ended_ms=row.ended_ms if row and is_done else 0,
        deadline_ms=_whole(told.get("deadline")),
        flag=told.get("flag", ""),
        num_tokens=_num_tokens(events, result, row),
        stamps=row.stamps if row and is_done else parse_stamps(told.get("stamps", "")),
        is_listed=row is not None or not is_done,
        finish=finish or (result.finish if result is not None else None),
        numbers=_numbers(told, row),
        has_result=result is not None,
        texts=_texts(told, events, result) if with_texts else None,
    )


def _numbers(told: Mapping[str, str], row: EndedJob | None) -> dict[str, int]:
    found = {} if row is None else {"priority": row.priority, "attempts": row.attempts}
    return found | {name: _whole(told[name]) for name in _NUMBERS if told.get(name)}


def _num_tokens(events: list[Any], result: JobResult | None, row: EndedJob | None) -> int:
    if result is not None:
        return result.finish.usage.completion_tokens
    if events:
        return int(events[-1].to)
    return row.output_tokens if row else 0


def _texts(told: Mapping[str, str], events: list[Any], result: JobResult | None) -> JobTexts:
    """Return the request as it is stored, and the answers as far as they are logged."""
    request = None
    if told.get("request"):
        try:
            request = json.loads(told["request"])
        except ValueError:
            request = {"body": told["request"]}
    if result is not None:
        return JobTexts(request, tuple(choice.text for choice in result.choices))
    answers: dict[int, str] = {}
    for event in events:
        if event.finish is None:
            answers[event.choice] = answers.get(event.choice, "") + event.text
    return JobTexts(request, tuple(answers[choice] for choice in sorted(answers)))


def _whole(text: str | None) -> int:
    try:
        return int(float(text or 0))
    except ValueError:
        return 0
