"""Routes of the board's data, `/ui/api/…`: figures, jobs and dead letters, and what operators do.

Each asks for a role; where keys are off, for a page of this machine.
"""

from __future__ import annotations

import logging
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import JSONResponse
from starlette.responses import Response  # noqa: TC002 - FastAPI reads the annotation

from tokenbus.producer.client.dead_letters import DeadLetters
from tokenbus.producer.client.watching.job_story import job_story
from tokenbus.producer.contract.address import DEFAULT_TENANT
from tokenbus.producer.errors import JobUnknown, ProducerError, RequestInvalid
from tokenbus.producer.gateway.access.caller import Caller  # noqa: TC001 - as Response
from tokenbus.producer.gateway.board.board_access import (
    BoardRole,
    check_place,
    check_pool,
    check_role,
    has_role,
)
from tokenbus.producer.gateway.board.board_figures import figures_body
from tokenbus.producer.gateway.board.board_jobs import MAX_ROWS, JobSearch, job_rows, story_body
from tokenbus.producer.gateway.board.board_letters import letter_body
from tokenbus.producer.gateway.board.watched_pools import WatchedPools
from tokenbus.producer.gateway.body import read_object
from tokenbus.producer.gateway.gateway import caller
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.gateway.gateway import Gateway

_log = logging.getLogger("tokenbus.gateway")
_HEADERS = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"}
_MAX_LETTERS = 500


class Board:
    """What the routes of the board do for a caller whose role was checked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watched = WatchedPools()

    async def session(self, who: Caller) -> dict[str, Any]:
        """Tell who the caller is, and which pools are the caller's."""
        models = self._gateway.models
        names = await models.names(who)
        pools = [
            {
                "name": view.name,
                "models": sorted({name for name, pool in names.items() if pool == view.name}),
                "is_ready": view.is_ready,
            }
            for view in (await models.pools()).values()
            if who.may_use(view.name)
        ]
        return {
            "version": version("tokenbus"),
            "roles": [role.value for role in BoardRole if has_role(who, role)],
            "has_keys": self._gateway.keys.is_on,
            "has_api": self._gateway.settings.gateway_serves_api,
            "default_pool": self._gateway.settings.pool,
            "pools": sorted(pools, key=lambda pool: str(pool["name"])),
        }

    async def figures(self, pool: str, since_ms: int) -> dict[str, Any]:
        """Return the figures of a pool, with its samples after a time."""
        client = await self.client(pool)
        sight = await self._watched.sight(client)
        return figures_body(sight, self._watched.samples(client), since_ms)

    async def jobs(self, pool: str, search: JobSearch, limit: int) -> dict[str, Any]:
        """Return the jobs that a search finds."""
        client = await self.client(pool)
        await self._watched.sight(client)
        return await job_rows(client, self._watched.ended(client), search, limit)

    async def job(self, pool: str, job_id: str, tenant: str, *, with_texts: bool) -> dict[str, Any]:
        """Return one job. Raises: ApiError 404."""
        client = await self.client(pool)
        await self._watched.sight(client)
        ended = self._watched.ended(client)
        story = await job_story(client.scripts, job_id, tenant, ended, with_texts=with_texts)
        if story is None:
            raise not_found("job", job_id)
        return story_body(story)

    async def letters(self, pool: str, limit: int, *, with_texts: bool) -> dict[str, Any]:
        """Return the newest dead letters."""
        letters = DeadLetters(await self.client(pool))
        found = [letter_body(each, with_texts=with_texts) async for each in letters.newest(limit)]
        return {"letters": found, "is_whole": len(found) < limit}

    async def retry(self, pool: str, entry: str) -> dict[str, Any]:
        """Submit a letter's request again; a letter that is gone was, or was deleted."""
        letters = DeadLetters(await self.client(pool))
        try:
            job = await letters.retry(await letters.find(entry))
        except RequestInvalid as error:
            raise ApiError(409, str(error), code="cannot_retry") from None
        return {"id": job.job_id, "tenant": job.tenant}

    async def delete(self, pool: str, entry: str) -> dict[str, Any]:
        """Delete a letter."""
        letters = DeadLetters(await self.client(pool))
        try:
            num_deleted = await letters.delete([await letters.find(entry)])
        except RequestInvalid:
            num_deleted = 0
        return {"deleted": num_deleted}

    async def cancel(self, pool: str, job_id: str, tenant: str) -> dict[str, Any]:
        """Cancel a job. Raises: ApiError 404."""
        client = await self.client(pool)
        try:
            return {"cancelled": await client.cancel(job_id, tenant)}
        except JobUnknown:
            raise not_found("job", job_id) from None

    async def pause(self, pool: str, *, is_paused: bool) -> dict[str, Any]:
        """Let the workers of a pool take nothing, or go on."""
        client = await self.client(pool)
        await (client.pause() if is_paused else client.resume())
        return {"paused": is_paused}

    async def drain(self, pool: str, worker: str, *, is_drained: bool) -> dict[str, Any]:
        """Let a worker take no more jobs, or take some again. Raises: ApiError 404."""
        control = (await self.client(pool)).scripts.control
        since = await control.drain(worker, is_drained=is_drained)
        if is_drained and since is None:
            raise not_found("worker", worker)
        return {"drained": since is not None}

    async def client(self, pool: str) -> AsyncClient:
        """Return the client of a pool that somebody knows. Raises: ApiError 404."""
        if pool not in await self._gateway.models.pools():
            raise not_found("pool", pool)
        return await self._gateway.models.client(pool)


def router(gateway: Gateway) -> APIRouter:
    """Return the routes."""
    board = Board(gateway)
    routes = APIRouter(prefix="/ui/api", include_in_schema=False)

    async def viewer(request: Request, who: Annotated[Caller, Depends(caller)]) -> Caller:
        if not gateway.keys.is_on:
            check_place(request)
        check_role(who, BoardRole.VIEWER)
        pool = request.path_params.get("pool")
        if pool is not None:
            check_pool(who, pool)
        return who

    _add_views(routes, board, viewer)
    _add_acts(routes, gateway, board, viewer)
    return routes


def _add_views(routes: APIRouter, board: Board, viewer: Callable[..., Any]) -> None:
    """Add the routes that change nothing."""
    who_views = Depends(viewer)

    @routes.get("/session")
    async def session(who: Caller = who_views) -> Response:
        return _told(await board.session(who))

    @routes.get("/pools/{pool}", dependencies=[who_views])
    async def pool_figures(pool: str, since_ms: int = 0) -> Response:
        return _told(await board.figures(pool, since_ms))

    @routes.get("/pools/{pool}/jobs", dependencies=[who_views])
    async def pool_jobs(
        pool: str,
        q: Annotated[str, Query(max_length=512)] = "",
        state: Annotated[str, Query(max_length=64)] = "",
        limit: Annotated[int, Query(ge=1, le=MAX_ROWS)] = 200,
    ) -> Response:
        states = tuple(filter(None, state.split(",")))
        return _told(await board.jobs(pool, JobSearch.parse(q, states), limit))

    @routes.get("/pools/{pool}/jobs/{job_id}")
    async def pool_job(
        pool: str, job_id: str, tenant: str = DEFAULT_TENANT, who: Caller = who_views
    ) -> Response:
        with_texts = has_role(who, BoardRole.READER)
        return _told(await board.job(pool, job_id, tenant, with_texts=with_texts))

    @routes.get("/pools/{pool}/letters")
    async def pool_letters(
        pool: str,
        limit: Annotated[int, Query(ge=1, le=_MAX_LETTERS)] = 100,
        who: Caller = who_views,
    ) -> Response:
        with_texts = has_role(who, BoardRole.READER)
        return _told(await board.letters(pool, limit, with_texts=with_texts))


def _add_acts(
    routes: APIRouter, gateway: Gateway, board: Board, viewer: Callable[..., Any]
) -> None:
    """Add the one route of operators: an act is named in the body, with what it is done to."""
    who_views = Depends(viewer)

    @routes.post("/pools/{pool}/acts")
    async def act(request: Request, pool: str, who: Caller = who_views) -> Response:
        check_role(who, BoardRole.OPERATOR)
        body = await read_object(request, gateway.settings)
        name, target = str(body.get("act", "")), str(body.get("target", ""))
        tenant = str(body.get("tenant") or DEFAULT_TENANT)
        done: dict[str, Any]
        try:
            match name:
                case "pause" | "resume":
                    done = await board.pause(pool, is_paused=name == "pause")
                case "drain" | "undrain":
                    done = await board.drain(pool, target, is_drained=name == "drain")
                case "cancel":
                    done = await board.cancel(pool, target, tenant)
                case "retry":
                    done = await board.retry(pool, target)
                case "delete":
                    done = await board.delete(pool, target)
                case _:
                    raise ApiError(400, f"act: {name!a} is none", code="invalid_request")
        except ProducerError as error:
            _log.warning(
                "board.act_failed act=%s pool=%s key=%s: %s", name, pool, who.key_id, error
            )
            raise
        _log.info("board.acted act=%s pool=%s target=%r key=%s", name, pool, target, who.key_id)
        return _told(done)


def _told(body: dict[str, Any]) -> Response:
    return JSONResponse(body, headers=_HEADERS)
