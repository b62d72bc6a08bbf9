"""Routes of files: `/v1/files`, uploaded, listed, shown, read and deleted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response, StreamingResponse

from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.body import too_large
from tokenbus.producer.gateway.file_place import FilePlace
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.multipart import FormUpload, boundary_of, malformed
from tokenbus.producer.gateway.wire.api_description import ERROR_RESPONSES, UPLOAD_BODY
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found
from tokenbus.producer.stored.errors import NotStored, StoreFull
from tokenbus.producer.stored.file_record import MAX_LIFE_S, MIN_LIFE_S
from tokenbus.producer.stored.paging import MAX_PAGE
from tokenbus.producer.stored.stored_files import FileFields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.gateway.gateway import Gateway
    from tokenbus.producer.stored.file_record import FileRecord

Who = Annotated[Caller, Depends(caller)]
_MAX_FILENAME = 255


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["files"], responses=ERROR_RESPONSES)
    place = FilePlace(gateway)
    _add_upload(routes, gateway, place)
    _add_list(routes, place)
    _add_each(routes, place)
    return routes


def _add_upload(routes: APIRouter, gateway: Gateway, place: FilePlace) -> None:
    @routes.post("/v1/files", openapi_extra={"requestBody": UPLOAD_BODY})
    async def upload_file(request: Request, who: Who) -> dict[str, Any]:
        """Keep a file; its bytes are written as they come."""
        files = place.files()
        boundary = boundary_of(request.headers.get("content-type", ""))
        form = FormUpload(
            _timed(request, gateway.settings.gateway_body_timeout_s), boundary, "file"
        )
        told = FileFields()
        try:
            record = await files.create(who.id_prefix, _checked(form, told), told)
        except StoreFull as error:
            raise too_large(request, f"{error}.", "file_too_large") from None
        return record.wire()


def _add_list(routes: APIRouter, place: FilePlace) -> None:
    @routes.get("/v1/files")
    async def list_files(
        who: Who,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = MAX_PAGE,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
        purpose: str | None = None,
    ) -> dict[str, Any]:
        """List the caller's files, the newest first unless they are to ascend."""
        page = await place.files().page(
            who.id_prefix, after=after, limit=limit, ascending=order == "asc", purpose=purpose
        )
        return page.wire([record.wire() for record in page.items])


def _add_each(routes: APIRouter, place: FilePlace) -> None:
    async def found(who: Caller, file_id: str) -> FileRecord:
        try:
            return await place.files().get(who.id_prefix, file_id)
        except NotStored:
            raise not_found("file", file_id) from None

    @routes.get("/v1/files/{file_id}")
    async def get_file(file_id: str, who: Who) -> dict[str, Any]:
        """Show a file."""
        return (await found(who, file_id)).wire()

    @routes.delete("/v1/files/{file_id}")
    async def delete_file(file_id: str, who: Who) -> dict[str, Any]:
        """Delete a file."""
        await found(who, file_id)
        await place.files().remove(who.id_prefix, file_id)
        return {"id": file_id, "object": "file", "deleted": True}

    @routes.get("/v1/files/{file_id}/content", response_class=Response)
    async def read_file(file_id: str, who: Who) -> Response:
        """Return the bytes of a file."""
        record = await found(who, file_id)
        blocks = place.files().read(record)
        named = quote(record.filename, safe="")
        headers = {
            "Content-Length": str(record.num_bytes),
            "Content-Disposition": f"attachment; filename*=utf-8''{named}",
            "X-Content-Type-Options": "nosniff",
        }
        try:
            first = await anext(blocks, b"")
        except FileNotFoundError:
            raise not_found("file", file_id) from None
        return StreamingResponse(
            _from_first(first, blocks), media_type="application/octet-stream", headers=headers
        )


async def _from_first(first: bytes, blocks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for block in blocks:
        yield block


async def _timed(request: Request, timeout_s: float) -> AsyncIterator[bytes]:
    """Yield the body as it comes. Raises: ApiError 408 where nothing comes for so long."""
    stream = request.stream()
    while True:
        try:
            async with asyncio.timeout(timeout_s):
                chunk = await anext(stream, None)
        except TimeoutError:
            told = f"Nothing of the body came for {timeout_s:g} s."
            headers = {"Connection": "close", "Retry-After": "1"}
            raise ApiError(408, told, code="timeout", headers=headers) from None
        if chunk is None:
            return
        yield chunk


async def _checked(form: FormUpload, told: FileFields) -> AsyncIterator[bytes]:
    """Yield the bytes of the file and then tell of it what the form does. Raises: ApiError 400."""
    async for chunk in form.file_bytes():
        yield chunk
    if form.filename is None:
        raise ApiError(400, "file: is missing", code="invalid_request", param="file")
    told.filename = form.filename.replace("\x00", "")[:_MAX_FILENAME] or "file"
    told.purpose = form.fields.get("purpose", "")
    if told.purpose != "batch":
        raise ApiError(400, "purpose: must be batch", code="invalid_request", param="purpose")
    told.lives_s = _life_s(form.fields)


def _life_s(fields: dict[str, str]) -> int | None:
    """Return how long the file is kept, None for ever. Raises: ApiError 400."""
    anchor, seconds = (fields.get(f"expires_after[{name}]") for name in ("anchor", "seconds"))
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise malformed("expires_after[anchor] must be created_at")
    is_number = seconds is not None and seconds.isascii() and seconds.isdecimal()
    if not is_number or not MIN_LIFE_S <= int(str(seconds)[:12]) <= MAX_LIFE_S:
        raise malformed(f"expires_after[seconds] must be {MIN_LIFE_S} to {MAX_LIFE_S}")
    return int(str(seconds))
