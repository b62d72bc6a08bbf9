"""Access to the board: by the roles of a key, and from the board's own page alone."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tokenbus.producer.gateway.settings import is_loopback
from tokenbus.producer.gateway.wire.api_error import ApiError, not_found

if TYPE_CHECKING:
    from starlette.requests import Request

    from tokenbus.producer.gateway.access.caller import Caller


class BoardRole(StrEnum):
    """What a key may do: look at figures and jobs, read prompts and answers, act on jobs and pools.

    Each of these roles may look.
    """

    VIEWER = "viewer"
    READER = "reader"
    OPERATOR = "operator"


def has_role(caller: Caller, role: BoardRole) -> bool:
    """Tell whether a caller may do what a role does."""
    return bool(caller.roles) if role is BoardRole.VIEWER else role.value in caller.roles


def check_role(caller: Caller, role: BoardRole) -> None:
    """Check that a caller may do what a role does. Raises: ApiError 403."""
    if not has_role(caller, role):
        told = f"The API key does not have the role '{role.value}' at the dashboard."
        raise ApiError(403, told, code="role_needed")


def check_pool(caller: Caller, pool: str) -> None:
    """Check that a pool is one of the caller's. Raises: ApiError 404."""
    if not caller.may_use(pool):
        raise not_found("pool", pool)


def check_place(request: Request) -> None:
    """Check that a request without a key is made on this machine by the board's own page.

    A page from elsewhere can make a browser ask what listens on the loopback, under a name of its
    own or of another origin; it is told nothing.
    Raises: ApiError 403.
    """
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    name = urlsplit(f"//{host}").hostname or ""
    is_foreign = origin is not None and urlsplit(origin).netloc != host
    if is_foreign or not is_loopback(name):
        told = (
            "Without keys the dashboard answers pages of this machine alone: make a key with"
            " `tokenbus keys create --role viewer`."
        )
        raise ApiError(403, told, code="not_local")
