"""The courier makes one HTTP POST, bounded in time, redirects, bytes read and addresses."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Self

import aiohttp
from yarl import URL

from tokenbus.producer.contract.callback_url import check_callback_url
from tokenbus.worker.control.errors import AddressRefused
from tokenbus.worker.control.webhooks.addresses import CheckedResolver

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tokenbus.worker.control.webhooks.addresses import AddressPolicy

# Only these two keep the method and the body; any other redirect is an answer like a failure.
_REDIRECTS = (307, 308)
_MAX_REDIRECTS = 3
# No hook lives longer (the bound of `webhook_max_age_s`).
MAX_RETRY_AFTER_S = 30 * 86_400.0


@dataclass(frozen=True, slots=True)
class PostReply:
    """What came of a POST; `status` is None without an answer, `error` then says why."""

    status: int | None
    error: str = ""
    retry_after_s: float | None = None
    is_refused: bool = False
    took_ms: int = 0


class Courier:
    """Posts to addresses that the policy lets pass. Use as a context manager."""

    def __init__(self, policy: AddressPolicy, timeout_s: float, max_connections: int) -> None:
        self._policy = policy
        self._timeout_s = timeout_s
        self._max_connections = max_connections
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connections; no proxy and no cookie of anyone is used."""
        connector = aiohttp.TCPConnector(
            resolver=CheckedResolver(self._policy),
            use_dns_cache=False,
            socket_factory=self._policy.open_socket,
            limit=self._max_connections,
        )
        self._session = aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> PostReply:
        """Post a body; every way to fail is an answer."""
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout_s):
                # An earlier release took URLs at its door that this one does not.
                first = URL(check_callback_url(url))
                status, retry_after_s = await self._follow(first, headers, body)
        except TimeoutError:
            return PostReply(None, f"no answer within {self._timeout_s:g} s", took_ms=_since(began))
        except (aiohttp.ClientError, OSError, ValueError) as error:
            refused = _refusal(error)
            # What is no URL, here or where a redirect points, will not become one.
            is_refused = refused is not None or isinstance(error, ValueError)
            text = str(refused or error) or type(error).__name__
            return PostReply(None, text[:500], None, is_refused, _since(began))
        return PostReply(status, "", retry_after_s, took_ms=_since(began))

    async def _follow(
        self, url: URL, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, float | None]:
        """Post, again to where a redirect points, and return status and `Retry-After`."""
        assert self._session is not None, "the courier was not entered"
        for _ in range(_MAX_REDIRECTS + 1):
            if url.scheme not in ("http", "https") or not url.host:
                raise AddressRefused(f"{url.scheme or 'no scheme'} is neither http nor https")
            self._policy.check_literal(url.host)
            async with self._session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as reply:
                location = reply.headers.get("Location")
                if reply.status not in _REDIRECTS or location is None:
                    return reply.status, _retry_after(reply.headers.get("Retry-After"))
                url = url.join(URL(location))
        raise aiohttp.ClientError(f"more than {_MAX_REDIRECTS} redirects")


def _since(began: float) -> int:
    return int((time.monotonic() - began) * 1000)


def _refusal(error: BaseException | None) -> AddressRefused | None:
    """Find our refusal among the causes of what aiohttp raised."""
    while error is not None:
        if isinstance(error, AddressRefused):
            return error
        error = error.__cause__ or error.__context__
    return None


def _retry_after(value: str | None) -> float | None:
    """Read seconds or a date; None for neither."""
    if value is None:
        return None
    try:
        return _clamped(float(value))
    except ValueError:
        pass
    try:
        at = parsedate_to_datetime(value)
        at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
        return _clamped((at - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError, OverflowError):
        return None


def _clamped(wait_s: float) -> float | None:
    """Bound a wait that a receiver asks for; None for what is no number."""
    return None if math.isnan(wait_s) else min(max(0.0, wait_s), MAX_RETRY_AFTER_S)
