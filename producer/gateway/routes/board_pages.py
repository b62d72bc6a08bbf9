"""Routes of the board's page: `/ui/` and its files, which tell nothing and ask for no key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fastapi import APIRouter, Request
from starlette.responses import RedirectResponse, Response

from tokenbus.producer.gateway.board.board_page import INDEX, page_files
from tokenbus.producer.gateway.wire.api_error import not_found

if TYPE_CHECKING:
    from tokenbus.producer.gateway.gateway import Gateway


def router(_: Gateway) -> APIRouter:
    """Return the routes."""
    routes = APIRouter(tags=["board"], include_in_schema=False)
    # Read and packed now: the first page is not kept waiting for that.
    page_files()

    @routes.get("/ui", response_class=Response)
    async def to_page() -> Response:
        """Redirect an address without the slash to the page, whatever path stands in front."""
        return RedirectResponse("ui/", 307)

    @routes.get("/ui/", response_class=Response)
    async def page(request: Request) -> Response:
        """Return the page."""
        return _file(request, INDEX)

    @routes.get("/ui/{name}", response_class=Response)
    async def page_file(request: Request, name: str) -> Response:
        """Return a file of the page."""
        return _file(request, name)

    return routes


def _file(request: Request, name: str) -> Response:
    found = page_files().get(name)
    if found is None:
        raise not_found("file", name)
    if request.headers.get("if-none-match") == found.etag:
        return Response(status_code=304, headers=found.headers)
    if "gzip" in request.headers.get("accept-encoding", ""):
        headers = found.headers | {"Content-Encoding": "gzip"}
        return Response(found.gzipped, media_type=found.media_type, headers=headers)
    return Response(found.content, media_type=found.media_type, headers=found.headers)
