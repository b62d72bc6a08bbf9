"""The client side of tokenbus: submit jobs, stream tokens, own the Redis contract.

The other errors are in `tokenbus.producer.errors`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient, Job
    from tokenbus.producer.client.blocking import Client
    from tokenbus.producer.contract.events import Event
    from tokenbus.producer.contract.result import (
        JobCancelled,
        JobEndedEarly,
        JobExpired,
        JobFailed,
        JobResult,
    )
    from tokenbus.producer.contract.schema import JobRequest

__all__ = [
    "Client",
    "AsyncClient",
    "JobRequest",
    "Job",
    "Event",
    "JobResult",
    "JobEndedEarly",
    "JobCancelled",
    "JobExpired",
    "JobFailed",
]

_HOMES = {
    "Client": "client.blocking",
    "AsyncClient": "client.async_client",
    "JobRequest": "contract.schema",
    "Job": "client.async_client",
    "Event": "contract.events",
    "JobResult": "contract.result",
    "JobEndedEarly": "contract.result",
    "JobCancelled": "contract.result",
    "JobExpired": "contract.result",
    "JobFailed": "contract.result",
}


def __getattr__(name: str) -> Any:
    """Import a name on its first use: an import of the package alone loads no Redis client."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
