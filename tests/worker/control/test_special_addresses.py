"""No special-purpose address is a receiver, however it is spelt; nothing is sent to find out."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import pytest

from tokenbus.worker.control.errors import AddressRefused
from tokenbus.worker.control.webhooks.addresses import AddressPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

# The IANA registries of special-purpose addresses, entry by entry, then multicast, what is
# reserved, and the endpoints of clouds.
IPV4 = """0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12
192.0.0.0/24 192.0.0.0/29 192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32
192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.88.99.2/32 192.168.0.0/16
192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4 255.255.255.255/32
224.0.0.0/4 232.0.0.0/8 233.252.0.0/24 239.0.0.0/8
169.254.169.254/32 169.254.170.2/32 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32
161.26.0.0/16 166.8.0.0/14 199.36.153.4/30 199.36.153.8/30"""
IPV6 = """::1/128 ::/128 ::ffff:0:0/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32
2001:1::1/128 2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28
2001:20::/28 2001:30::/28 2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7
fe80::/10 fec0::/10 ff00::/8 ::/96 ::/8 200::/7 4000::/3 8000::/1 fd00:ec2::254/128
fd20:ce::254/128"""
# Forms that carry an IPv4 address.
CARRIERS = {"mapped": "::ffff:0:0", "compatible": "::", "NAT64": "64:ff9b::", "6to4": "2002::"}
# The characters from ! to ~ in their wide forms.
FULL_WIDTH = {code: 0xFF00 + code - 0x20 for code in map(ord, "0123456789.")}
ARABIC = str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩")
CIRCLED = str.maketrans("123456789", "①②③④⑤⑥⑦⑧⑨")


def corners(prefix: str) -> Iterator[ipaddress.IPv4Address | ipaddress.IPv6Address]:
    """Yield the first, the last and the middle address of a prefix."""
    network = ipaddress.ip_network(prefix)
    for at in {0, network.num_addresses - 1, network.num_addresses // 2}:
        yield network[at]


def spellings_of_ipv4(address: ipaddress.IPv4Address) -> Iterator[str]:
    """Write an IPv4 address in every way that something reads as one."""
    a, b, c, d = address.packed
    whole, plain = int(address), str(address)
    yield from (plain, f"{plain}.", f"{whole}", f"{whole}.", f"0{whole:o}", f"{whole:#x}")
    yield from (f"{whole:#X}", f"0x{whole:016x}", f"000{whole:011o}")
    yield from (f"{a}.{int(address) & 0xFFFFFF}", f"{a}.{b}.{c << 8 | d}", f"{a:#x}.{b}.0{c:o}.{d}")
    yield from (
        f"0{a:o}.0{b:o}.0{c:o}.0{d:o}",
        f"{a:#x}.{b:#x}.{c:#x}.{d:#x}",
        f"0x{a:04x}.{b}.{c}.{d}",
    )
    yield from (f"00{a:03o}.{b}.{c}.{d}", "".join(f"%{ord(each):02x}" for each in plain))
    yield from ("".join(f"%25{ord(each):02x}" for each in plain), plain.replace(".", "%2e"))
    yield from (plain.translate(each) for each in (FULL_WIDTH, ARABIC, CIRCLED))
    yield from (plain.replace(".", dot) for dot in ("\u3002", "\uff0e", "\uff61", "%E3%80%82"))
    yield from (f"{plain[0]}\u00ad{plain[1:]}", f"{plain[0]}\u200b{plain[1:]}", f"{plain}\ufe0f")


def spellings_of_ipv6(address: ipaddress.IPv6Address) -> Iterator[str]:
    """Write an IPv6 address short, long, with IPv4 at its end, with zones, in brackets."""
    head = ":".join(address.exploded.split(":")[:6])
    with_ipv4 = f"{head}:{ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)}"
    for form in (str(address), address.exploded, address.exploded.upper(), with_ipv4):
        yield from (
            form,
            f"[{form}]",
            f"{form}%eth0",
            f"{form}%25eth0",
            f"[{form}%251]",
            f"{form}%",
        )
        yield from (form.replace(":", "%3a"), form.translate(FULL_WIDTH))


def assert_refused(host: str) -> None:
    """Ask the policy as the courier does for the host of a URL."""
    with pytest.raises(AddressRefused):
        AddressPolicy().check_literal(host)


@pytest.mark.parametrize("prefix", IPV4.split())
def test_special_ipv4_address_is_refused_in_every_spelling(prefix: str) -> None:
    """Alone and inside every form of IPv6 that carries it."""
    for address in corners(prefix):
        assert isinstance(address, ipaddress.IPv4Address)
        with pytest.raises(AddressRefused, match="not a public address"):
            AddressPolicy().check(str(address))
        for host in spellings_of_ipv4(address):
            assert_refused(host)
        for name, base in CARRIERS.items():
            number = int(address) << (80 if name == "6to4" else 0)
            inside = ipaddress.IPv6Address(int(ipaddress.IPv6Address(base)) | number)
            for host in spellings_of_ipv6(inside):
                assert_refused(host)
        teredo = (0x20010000 << 96) | (int(address) ^ 0xFFFFFFFF)
        assert_refused(str(ipaddress.IPv6Address(teredo)))


@pytest.mark.parametrize("prefix", IPV6.split())
def test_special_ipv6_address_is_refused_in_every_spelling(prefix: str) -> None:
    """First, last and middle of every entry."""
    for address in corners(prefix):
        assert isinstance(address, ipaddress.IPv6Address)
        with pytest.raises(AddressRefused, match="not a public address"):
            AddressPolicy().check(str(address))
        for host in spellings_of_ipv6(address):
            assert_refused(host)


@pytest.mark.parametrize(
    "host",
    ["1.2.3.4.5", "256.1.1.1", "1.2.3.256", "1.2.3.08", "4294967296", "0x1ffffffff", "a.b.1",
     "1.x.3.4", "shop.0x7f", "1..2", "::1::", "12345::", "9" * 5000],
)  # fmt: skip
def test_host_that_ends_in_a_number_and_is_no_address_is_refused(host: str) -> None:
    """What one resolver refuses, another cuts down to an address."""
    assert_refused(host)


@pytest.mark.parametrize(
    "host",
    ["1.1.1.1", "93.184.216.34", "192.0.1.1", "192.88.98.255", "192.88.100.0", "168.63.129.15",
     "161.27.0.0", "166.12.0.0", "199.36.153.3", "199.36.153.12",
     "172.32.0.0", "100.128.0.0", "223.255.255.255", "2606:2800:220:1::1", "2001:200::1",
     "2620:4f:7fff::1", "64:ff9b::5db8:d822", "shop.example", "1password.example",
     "xn--bcher-kva.example", "bücher.example", "0x7f.example"],
)  # fmt: skip
def test_neighbours_of_special_addresses_and_names_pass(host: str) -> None:
    """The policy takes no more than it has to; names are judged by what they resolve to."""
    AddressPolicy().check_literal(host)


def test_operator_opens_special_networks_in_every_form() -> None:
    """An allowed network is allowed mapped and behind NAT64 too, and no other form of it."""
    policy = AddressPolicy([ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fe80::/10")])
    for host in ("10.1.2.3", "167838211", "::ffff:10.1.2.3", "64:ff9b::a01:203", "fe80::1%eth0"):
        policy.check_literal(host)
    for host in ("2002:a01:203::", "::10.1.2.3", "11.0.0.0.1", "192.168.0.1"):
        with pytest.raises(AddressRefused):
            policy.check_literal(host)
