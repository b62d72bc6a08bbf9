"""Connections that leave a deposed master: the next one looks up where the master is by now.

A managed service or a script that fails over makes the old master a replica, which answers on and
on; its address leads elsewhere meanwhile, but only for those who connect anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.asyncio.connection import (
    AbstractConnection,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ResponseError

from tokenbus.producer.answers import answer_of

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool

_CODES = ("READONLY", "UNBLOCKED", "REDIRECT", "MASTERDOWN", "NOMASTERLINK", "NOREPLICAS")


def is_deposed(error: ResponseError) -> bool:
    """Tell whether a server answers like a master that nobody follows any more."""
    return answer_of(error).code in _CODES


def leave_deposed(pool: ConnectionPool) -> None:
    """Let a pool that has opened nothing yet close what a deposed master has answered on."""
    pool.connection_class = _KINDS[pool.connection_class]


class _Leaving(AbstractConnection):
    """Closes itself after such an answer."""

    async def read_response(self, *args: Any, **options: Any) -> Any:
        """Read a reply. Raises: what the server answers."""
        try:
            return await super().read_response(*args, **options)
        except ResponseError as error:
            if is_deposed(error):
                await self.disconnect(nowait=True)
            raise


_KINDS: dict[type[AbstractConnection], type[AbstractConnection]] = {
    kind: type(f"Leaving{kind.__name__}", (_Leaving, kind), {})
    for kind in (Connection, SSLConnection, UnixDomainSocketConnection)
}
