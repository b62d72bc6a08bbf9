"""Addresses of webhooks: public ones, and networks that the operator allows.

The rule is applied to the address that is connected to, after every look-up and redirect, so a
name that answers differently the second time gains nothing.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import TYPE_CHECKING, Any

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from tokenbus.producer.contract.callback_url import host_address
from tokenbus.worker.control.errors import AddressRefused
from tokenbus.worker.control.webhooks.special_addresses import carried, is_public

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.control.webhooks.special_addresses import Address, Network


class AddressPolicy:
    """Tells which addresses may be connected to."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def check(self, text: str) -> None:
        """Let an IP address pass. Raises: AddressRefused."""
        try:
            given = ipaddress.ip_address(text.partition("%")[0])
        except ValueError:
            raise AddressRefused(f"{text} is not an address") from None
        if not (self._is_allowed(given) or self._is_allowed(carried(given)) or is_public(given)):
            raise AddressRefused(f"{text} is not a public address")

    def _is_allowed(self, address: Address | None) -> bool:
        return address is not None and any(
            address.version == network.version and address in network for network in self._allowed
        )

    def check_literal(self, host: str) -> None:
        """Check a host that spells an IP address; names pass, they are checked as resolved.

        Raises: AddressRefused.
        """
        try:
            address = host_address(host)
        except ValueError as error:
            raise AddressRefused(f"{host}: {error}") from None
        if address is not None:
            self.check(str(address))

    def open_socket(self, address: tuple[Any, ...]) -> socket.socket:
        """Make the socket for one address of `getaddrinfo`, the last gate before a connection.

        Raises: AddressRefused.
        """
        family, kind, protocol, _, target = address
        self.check(str(target[0]))
        made = socket.socket(family, kind, protocol)
        made.setblocking(False)
        return made


class CheckedResolver(AbstractResolver):
    """Looks names up and refuses one if any of its addresses is refused."""

    def __init__(self, policy: AddressPolicy) -> None:
        self._policy = policy
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Return the addresses to connect to. Raises: AddressRefused, OSError."""
        found = await self._resolver.resolve(host, port, family)
        for result in found:
            self._policy.check(result["host"])
        return found

    async def close(self) -> None:
        """Close nothing: look-ups run in threads."""
        await self._resolver.close()
