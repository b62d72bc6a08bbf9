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

from tokenbus.worker.control.errors import AddressRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
# Prefixes whose addresses carry an IPv4 address, and how far to shift it down.
_CARRIERS = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # mapped
    (ipaddress.IPv6Network("::/96"), 0),  # compatible, long deprecated
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)


def _carried(address: Address) -> Address:
    """Return the IPv4 address inside an IPv6 one, if it is of a form that carries one."""
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in _CARRIERS:
            if address in network and int(address) > 1:
                return ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return address


class AddressPolicy:
    """Tells which addresses may be connected to."""

    def __init__(self, allowed: Sequence[Network] = ()) -> None:
        self._allowed = tuple(allowed)

    def check(self, text: str) -> None:
        """Let an IP address pass. Raises: AddressRefused."""
        given = ipaddress.ip_address(text.split("%", 1)[0])
        meant = _carried(given)
        if any(a.version == n.version and a in n for a in (given, meant) for n in self._allowed):
            return
        is_public = meant.is_global and not (meant.is_multicast or meant.is_reserved)
        is_site_local = isinstance(meant, ipaddress.IPv6Address) and meant.is_site_local
        if not is_public or is_site_local:
            raise AddressRefused(f"{text} is not a public address")

    def check_literal(self, host: str) -> None:
        """Check a host that is an IP address already; names pass, they are checked as resolved.

        Raises: AddressRefused.
        """
        try:
            ipaddress.ip_address(host.split("%", 1)[0])
        except ValueError:
            return
        self.check(host)

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
