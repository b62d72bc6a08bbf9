"""Jobs as the board lists and shows them: searched by words, and one with its timeline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from tokenbus.producer.client.job_list import LISTED_STATES, MAX_LISTED, list_jobs
from tokenbus.producer.contract.address import whole_tenant
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.gateway.wire.api_error import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.client.job_list import ListedJob
    from tokenbus.producer.client.watching.job_story import JobStory
    from tokenbus.producer.scripts.timeline import EndedJob, Stamp

MAX_ROWS = 500
ENDED = "ended"
STATES = (*(state.value for state in LISTED_STATES), ENDED)
# Of a stored request, what opens something and is no text.
_SECRET = ("cache_secret", "listen", "reply")


@dataclass(frozen=True, slots=True)
class JobSearch:
    """What a search asks for: by state, tenant, worker, priority, reason, and parts of ids."""

    states: tuple[str, ...] = STATES
    tenant: str | None = None
    worker: str | None = None
    priority: int | None = None
    reason: str | None = None
    parts: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str, states: Sequence[str] = ()) -> Self:
        """Read a search as it was typed. Raises: ApiError 400."""
        told: dict[str, str] = {}
        parts = []
        for word in text.split():
            name, colon, value = word.partition(":")
            if colon and value and name in ("state", "tenant", "worker", "priority", "reason"):
                told[name] = value
            else:
                parts.append(word.lower())
        chosen = tuple(told["state"].split(",")) if "state" in told else tuple(states) or STATES
        unknown = [state for state in chosen if state not in STATES]
        if unknown:
            raise _wrong(f"state: {unknown[0]!a} is not {', '.join(STATES)}")
        priority = told.get("priority")
        if priority is not None and priority not in ("0", "1", "2"):
            raise _wrong("priority: is 0, 1 or 2")
        if "reason" in told:
            # What has not ended has no reason.
            chosen = (ENDED,)
        return cls(
            chosen,
            told.get("tenant"),
            told.get("worker"),
            None if priority is None else int(priority),
            told.get("reason"),
            tuple(parts),
        )

    def has_id(self, job_id: str) -> bool:
        """Tell whether a job's id has all parts in it."""
        lowered = job_id.lower()
        return all(part in lowered for part in self.parts)

    def has_listed(self, job: ListedJob) -> bool:
        """Tell whether a job that has not ended is meant; its id and tenant are."""
        is_at = self.worker is None or self.worker in job.worker
        return is_at and self.priority in (None, job.priority)

    def has_ended(self, job: EndedJob) -> bool:
        """Tell whether a job that has ended is meant."""
        return (
            self.tenant in (None, job.tenant, whole_tenant(job.tenant))
            and self.priority in (None, job.priority)
            and self.reason in (None, job.reason, job.code)
            and (self.worker is None or self.worker in job.owner)
            and self.has_id(job.job_id)
        )


async def job_rows(
    client: AsyncClient, ended: Sequence[EndedJob], search: JobSearch, limit: int
) -> dict[str, Any]:
    """Return the rows that a search finds, those that have not ended first; the newest ends first.

    Raises: ApiError 400; what a call on the server raises.
    """
    rows: list[dict[str, Any]] = []
    is_whole = True
    live = [state for state in search.states if state != ENDED]
    if live:
        is_filtered = search.worker is not None or search.priority is not None
        try:
            found = await list_jobs(
                client.scripts,
                tenant=search.tenant,
                states=live,
                limit=MAX_LISTED if is_filtered else limit,
                with_shares=True,
                is_wanted=search.has_id if search.parts else None,
            )
        except RequestInvalid as error:
            raise _wrong(str(error)) from None
        rows = [_listed_row(job) for job in found.jobs if search.has_listed(job)]
        is_whole = found.is_whole
    if ENDED in search.states:
        for job in reversed(ended):
            if len(rows) > limit:
                break
            if search.has_ended(job):
                rows.append(_ended_row(job))
    return {"jobs": rows[:limit], "is_whole": is_whole and len(rows) <= limit}


def _listed_row(job: ListedJob) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "tenant": job.tenant,
        "whole_tenant": whole_tenant(job.tenant),
        "state": job.state.value,
        "priority": job.priority,
        "worker": job.worker,
        "age_s": round(job.age_s, 3),
        "tokens": job.tokens,
        "attempts": job.attempts,
    }


def _ended_row(job: EndedJob) -> dict[str, Any]:
    return {
        "id": job.job_id,
        "tenant": job.tenant,
        "whole_tenant": whole_tenant(job.tenant),
        "state": ENDED,
        "priority": job.priority,
        "worker": job.owner,
        "reason": job.reason,
        "code": job.code,
        "ended_ms": job.ended_ms,
        "age_s": max(0, job.ended_ms - job.created_ms) / 1000,
        "prompt_tokens": job.prompt_tokens,
        "cached_tokens": job.cached_tokens,
        "output_tokens": job.output_tokens,
        "attempts": job.attempts,
        "owners": job.num_owners,
        "queue_ms": job.queue_ms,
        "ttft_ms": job.ttft_ms,
    }


def story_body(story: JobStory) -> dict[str, Any]:
    """Return one job with its timeline, and with its texts where they were read."""
    finish = story.finish
    body: dict[str, Any] = {
        "id": story.job_id,
        "tenant": story.tenant,
        "whole_tenant": whole_tenant(story.tenant),
        "state": ENDED if story.state == "done" else story.state,
        "worker": story.owner,
        "flag": story.flag,
        "created_ms": story.created_ms,
        "ended_ms": story.ended_ms,
        "deadline_ms": story.deadline_ms,
        "num_tokens": story.num_tokens,
        "numbers": dict(story.numbers),
        "has_result": story.has_result,
        "is_listed": story.is_listed,
        "stamps": [_stamp(stamp) for stamp in story.stamps],
        "finish": None,
        "texts": None,
    }
    if finish is not None:
        usage = finish.usage
        body["finish"] = {
            "reason": finish.reason,
            "prompt_tokens": usage.prompt_tokens,
            "cached_tokens": usage.cached_tokens,
            "output_tokens": usage.completion_tokens,
            "code": finish.error.code if finish.error else "",
            # A message may quote what the request said.
            "message": finish.error.message if finish.error and story.texts else "",
        }
    if story.texts is not None:
        request = story.texts.request
        body["texts"] = {
            "request": None
            if request is None
            else json.dumps(_shown(request), indent=2, ensure_ascii=False),
            "answers": list(story.texts.answers),
        }
    return body


def _shown(request: Any) -> Any:
    return {name: value for name, value in request.items() if name not in _SECRET}


def _stamp(stamp: Stamp) -> dict[str, Any]:
    return {
        "kind": stamp.kind,
        "at_ms": stamp.at_ms,
        "worker": stamp.worker,
        "why": stamp.why,
        "logged": stamp.logged,
    }


def _wrong(told: str) -> ApiError:
    return ApiError(400, told, code="invalid_request", param="q")
