"""Addresses that are not the public Internet, as IANA registers them, and clouds' own.

The tables are ours: those of the interpreter differ from version to version and leave out what
routes somewhere, whatever a registry calls it.
Sources: IANA registries of IPv4 and IPv6 special-purpose addresses (RFC 6890), IPv4 and IPv6
address spaces, as of late 2025.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

IPV4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",  # this network
            "10.0.0.0/8",  # private
            "100.64.0.0/10",  # shared by carriers; a cloud's metadata at 100.100.100.200
            "127.0.0.0/8",  # loopback
            "169.254.0.0/16",  # link-local; clouds' metadata at 169.254.169.254 and others
            "172.16.0.0/12",  # private
            "192.0.0.0/24",  # protocol assignments; a cloud's metadata at 192.0.0.192
            "192.0.2.0/24",  # documentation
            "192.31.196.0/24",  # AS112
            "192.52.193.0/24",  # multicast tunnels (AMT)
            "192.88.99.0/24",  # relays of 6to4, deprecated
            "192.168.0.0/16",  # private
            "192.175.48.0/24",  # AS112
            "198.18.0.0/15",  # benchmarks
            "198.51.100.0/24",  # documentation
            "203.0.113.0/24",  # documentation
            "224.0.0.0/4",  # multicast
            "240.0.0.0/4",  # reserved, and broadcast
            # Services of clouds on public numbers, for hosts inside of them alone.
            "168.63.129.16/32",
            "161.26.0.0/16",
            "166.8.0.0/14",
            "199.36.153.4/30",
            "199.36.153.8/30",
        ),
    )
)
# Only this part of IPv6 is handed out as unicast; all else is special or not assigned.
IPV6_UNICAST = IPv6Network("2000::/3")
IPV6 = tuple(
    map(
        IPv6Network,
        (
            "2001::/23",  # protocol assignments: Teredo, benchmarks, ORCHID, AMT, AS112, drones
            "2001:db8::/32",  # documentation
            "2002::/16",  # 6to4, deprecated
            "2620:4f:8000::/48",  # AS112
            "3fff::/20",  # documentation
            "3ffe::/16",  # 6bone, returned
        ),
    )
)
MAPPED = IPv6Network("::ffff:0:0/96")
NAT64 = IPv6Network("64:ff9b::/96")


def carried(address: Address) -> IPv4Address | None:
    """Return the IPv4 host that an IPv6 address stands for: mapped or behind NAT64."""
    if isinstance(address, IPv6Address) and (address in MAPPED or address in NAT64):
        return IPv4Address(int(address) & 0xFFFFFFFF)
    return None


def is_public(address: Address) -> bool:
    """Tell whether an address is an ordinary one of the public Internet.

    Behind NAT64 the IPv4 address is judged. All other forms that carry one, mapped, compatible,
    6to4 and Teredo, are special whatever they carry: no receiver has to be reached by them.
    """
    if isinstance(address, IPv4Address):
        return not any(address in network for network in IPV4)
    if address in NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFFFFFF))
    return address in IPV6_UNICAST and not any(address in network for network in IPV6)
