"""Routes of batches: `/v1/batches`, created, listed, shown and cancelled."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from tokenbus.engine.chat.requests.bounds import MAX_METADATA
from tokenbus.engine.chat.requests.json_values import check_json
from tokenbus.producer.contract.callback_url import check_callback_url
from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.access.key_ring import stored_key_of
from tokenbus.producer.gateway.answering import ignored_header
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.file_place import FilePlace
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.responses.input_items import invalid
from tokenbus.producer.gateway.wire.api_description import BATCH_BODY, ERROR_RESPONSES
from tokenbus.producer.gateway.wire.api_error import not_found
from tokenbus.producer.stored.batch_record import ENDPOINTS, OUTPUT_LIVES_S, BatchRecord, window_s
from tokenbus.producer.stored.derived_ids import draw_batch_id
from tokenbus.producer.stored.errors import NotStored
from tokenbus.producer.stored.file_record import MAX_LIFE_S, MIN_LIFE_S
from tokenbus.producer.stored.stored_batches import StoredBatches

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.stored.content_store import ContentStore

Who = Annotated[Caller, Depends(caller)]
_MAX_FIRST_LINE = 8 * 1024 * 1024
_FIELDS = frozenset(
    {
        "input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after",
        "callback_url",
    }
)  # fmt: skip


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["batches"], responses=ERROR_RESPONSES)
    batches = StoredBatches(gateway.redis)
    _add_create(routes, gateway, batches)
    _add_each(routes, batches)
    return routes


def _add_create(routes: APIRouter, gateway: Gateway, batches: StoredBatches) -> None:
    place = FilePlace(gateway)

    @routes.post("/v1/batches", openapi_extra={"requestBody": BATCH_BODY})
    async def create_batch(request: Request, reply: Response, who: Who) -> dict[str, Any]:
        """Create a batch of the lines of a file, run by the control services of its pool."""
        body = await read_object(request, gateway.settings)
        given = {name: value for name, value in body.items() if value is not None}
        life_s, output_lives_s = _checked(given), _output_lives_s(given)
        unknown = sorted(given.keys() - _FIELDS)
        if unknown and gateway.settings.gateway_strict:
            raise invalid(unknown[0], "is no field of this request")
        reply.headers.update(ignored_header(unknown))
        try:
            source = await place.files().get(who.id_prefix, given["input_file_id"])
        except NotStored:
            raise invalid("input_file_id", "names no file of yours") from None
        if source.purpose != "batch":
            raise invalid("input_file_id", "is no file for a batch")
        model = await _first_model(place.files().contents, source.content)
        served = await gateway.models.resolve(model, who)
        await gateway.models.note(served.pool)
        now_s = await batches.now_s()
        record = BatchRecord(
            id=draw_batch_id(),
            owner=who.id_prefix,
            tenant=who.job_tenant,
            pool=served.pool,
            priority=max(who.priorities),
            endpoint=given["endpoint"],
            input_file_id=source.id,
            completion_window=given["completion_window"],
            created_at=now_s,
            expires_at=now_s + life_s,
            model=model,
            metadata=given.get("metadata", {}),
            callback_url=given.get("callback_url"),
            key_id=stored_key_of(who),
            output_lives_s=output_lives_s,
        )
        return (await batches.create(record)).wire()


def _add_each(routes: APIRouter, batches: StoredBatches) -> None:
    @routes.get("/v1/batches")
    async def list_batches(
        who: Who, limit: Annotated[int, Query(ge=1, le=100)] = 20, after: str | None = None
    ) -> dict[str, Any]:
        """List the caller's batches, the newest first."""
        page = await batches.page(who.id_prefix, after=after, limit=limit)
        return page.wire([state.wire() for state in page.items])

    @routes.get("/v1/batches/{batch_id}")
    async def get_batch(batch_id: str, who: Who) -> dict[str, Any]:
        """Show a batch and how far it is."""
        with _told_missing(batch_id):
            return (await batches.get(who.id_prefix, batch_id)).wire()

    @routes.post("/v1/batches/{batch_id}/cancel")
    async def cancel_batch(batch_id: str, who: Who) -> dict[str, Any]:
        """End a batch; what was answered stays, every other line tells that it was not."""
        with _told_missing(batch_id):
            return (await batches.cancel(who.id_prefix, batch_id)).wire()


@contextmanager
def _told_missing(batch_id: str) -> Iterator[None]:
    """Answer 404 where the batch is none of the caller's."""
    try:
        yield
    except NotStored:
        raise not_found("batch", batch_id) from None


async def _first_model(contents: ContentStore, name: str) -> str | None:
    """Return the model that the first line asks for; what is wrong with it is told later."""
    async for line in contents.lines(name, _MAX_FIRST_LINE):
        if line.strip():
            try:
                model = json.loads(line)["body"]["model"]
            except (ValueError, KeyError, TypeError, RecursionError):
                return None
            return model if isinstance(model, str) else None
    return None


def _checked(given: dict[str, Any]) -> int:
    """Check the fields of a batch; return its window in seconds. Raises: ApiError 400."""
    for name in ("input_file_id", "endpoint", "completion_window"):
        if not isinstance(given.get(name), str):
            raise invalid(name, "must be text" if name in given else "is missing")
    if given["endpoint"] not in ENDPOINTS:
        raise invalid("endpoint", f"must be one of {', '.join(ENDPOINTS)}")
    life_s = window_s(given["completion_window"])
    if life_s is None:
        raise invalid("completion_window", "must be 24h, or another time of a week at most")
    metadata = given.get("metadata", {})
    is_plain = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
    if not is_plain or len(metadata) > MAX_METADATA:
        raise invalid("metadata", f"must be an object of at most {MAX_METADATA} texts")
    try:
        check_json(metadata)
    except UnicodeEncodeError:
        raise invalid("metadata", "holds half a surrogate pair") from None
    if "callback_url" in given:
        try:
            check_callback_url(given["callback_url"])
        except (TypeError, ValueError, AttributeError) as error:
            raise invalid("callback_url", str(error)) from None
    return life_s


def _output_lives_s(given: dict[str, Any]) -> int:
    """Return how long the files of a batch are kept. Raises: ApiError 400."""
    path = "output_expires_after"
    after = given.get(path)
    if after is None:
        return OUTPUT_LIVES_S
    if not isinstance(after, dict) or after.get("anchor") != "created_at":
        raise invalid(f"{path}.anchor", "must be created_at")
    seconds = after.get("seconds")
    if type(seconds) is not int or not MIN_LIFE_S <= seconds <= MAX_LIFE_S:
        raise invalid(f"{path}.seconds", f"must be {MIN_LIFE_S} to {MAX_LIFE_S}")
    return seconds
