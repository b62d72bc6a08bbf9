"""A webhook reaches public addresses only, whatever its URL, its DNS or a redirect says."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from workers.control_processes import receiver

from tokenbus.worker.control.errors import AddressRefused
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.control.webhooks.addresses import AddressPolicy
from tokenbus.worker.control.webhooks.courier import Courier

if TYPE_CHECKING:
    from workers.control_processes import Call

PRIVATE = [
    "127.0.0.1",
    "127.8.9.10",
    "0.0.0.0",  # noqa: S104 -- an address to refuse
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "192.168.1.1",
    "100.64.0.1",
    "169.254.169.254",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "fc00::1",
    "ff02::1",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "2002:7f00:1::",
]


@pytest.mark.parametrize("address", PRIVATE)
def test_address_that_is_not_public_is_refused(address: str) -> None:
    """Loopback, private, link-local, shared, reserved and multicast, in every disguise."""
    with pytest.raises(AddressRefused, match="not a public address"):
        AddressPolicy().check(address)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_public_address_passes(address: str) -> None:
    """The rest of the world may be called."""
    AddressPolicy().check(address)


def test_allowed_networks_pass_and_no_others() -> None:
    """The operator opens networks one by one."""
    settings = ControlSettings.load(webhook_allowed_networks=["10.1.0.0/16", "::1/128"])
    policy = AddressPolicy(settings.webhook_allowed_networks)
    for address in ("10.1.2.3", "::1", "::ffff:10.1.2.3"):
        policy.check(address)
    for address in ("10.2.0.1", "127.0.0.1"):
        with pytest.raises(AddressRefused):
            policy.check(address)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "[::1]", "169.254.169.254", "10.0.0.7", "localhost", "2130706433", "0x7f.1",
     "127.1", "[::ffff:127.0.0.1]"],
)  # fmt: skip
async def test_url_of_a_private_address_is_never_called(host: str) -> None:
    """Every spelling of an inner address is refused before a connection, for good."""
    async with receiver(host="127.0.0.1") as inner, Courier(AddressPolicy(), 5, 4) as courier:
        answer = await courier.post(f"http://{host}:{inner.port}/", {}, b"{}")
    assert answer.is_refused
    assert answer.status is None
    assert inner.calls == []


@pytest.mark.parametrize(
    "target",
    ["http://127.0.0.2:{port}/", "http://[::1]:{port}/", "http://169.254.169.254/",
     "http://10.0.0.7/", "file:///etc/passwd"],
)  # fmt: skip
async def test_redirect_to_a_private_address_is_refused(target: str) -> None:
    """An outer receiver cannot send us inside."""

    async def answer(_: Call) -> web.Response:
        location = target.format(port=inner.port)
        return web.Response(status=307, headers={"Location": location})

    settings = ControlSettings.load(webhook_allowed_networks=["127.0.0.1/32"])
    policy = AddressPolicy(settings.webhook_allowed_networks)
    async with (
        receiver(host="0.0.0.0") as inner,  # noqa: S104 -- reachable at every loopback address
        receiver(answer) as outer,
        Courier(policy, 5, 4) as courier,
    ):
        reply = await courier.post(outer.url(), {}, b"{}")
    assert reply.is_refused
    assert len(outer.calls) == 1
    assert inner.calls == []


def _answering(*answers: str) -> Any:
    """Return a look-up that gives these addresses, one per call, and the number of calls."""
    given: list[str] = []

    def look_up(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        del host
        address = answers[min(len(given), len(answers) - 1)]
        given.append(address)
        kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
        return [(*kind, (part, port)) for part in address.split()]

    look_up.given = given  # type: ignore[attr-defined]  # read by the test
    return look_up


async def test_name_that_resolves_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """One inner address among outer ones is enough."""
    async with receiver() as inner, Courier(AddressPolicy(), 5, 4) as courier:
        for found in ("127.0.0.1", "93.184.216.34 127.0.0.1", "10.0.0.7", "169.254.169.254"):
            monkeypatch.setattr(socket, "getaddrinfo", _answering(found))
            reply = await courier.post(f"http://shop.example:{inner.port}/", {}, b"{}")
            assert reply.is_refused
    assert inner.calls == []


async def test_name_that_changes_its_answer_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is connected to is what was checked: the name is not looked up a second time."""
    look_up = _answering("93.184.216.34", "127.0.0.1")
    connected: list[str] = []

    def refuse(family: int, kind: int, protocol: int = 0) -> Any:
        del family, kind, protocol
        raise OSError("no way out of this test")

    policy = AddressPolicy()
    check = policy.check

    def noting(address: str) -> None:
        check(address)
        connected.append(address)

    monkeypatch.setattr(policy, "check", noting)
    async with receiver() as inner, Courier(policy, 5, 4) as courier:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "getaddrinfo", look_up)
            patch.setattr("tokenbus.worker.control.webhooks.addresses.socket.socket", refuse)
            reply = await courier.post(f"http://shop.example:{inner.port}/", {}, b"{}")
    assert reply.status is None
    assert look_up.given == ["93.184.216.34"]
    assert set(connected) == {"93.184.216.34"}
    assert inner.calls == []


async def test_last_gate_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Should a resolver let an inner address through, no socket is opened for it."""

    async def unchecked(_: object, host: str, port: int = 0, family: int = 0) -> list[Any]:
        del family
        return [{"hostname": host, "host": "127.0.0.1", "port": port, "family": socket.AF_INET,
            "proto": 0, "flags": socket.AI_NUMERICHOST}]  # fmt: skip

    monkeypatch.setattr(
        "tokenbus.worker.control.webhooks.addresses.CheckedResolver.resolve", unchecked
    )
    async with receiver() as inner, Courier(AddressPolicy(), 5, 4) as courier:
        reply = await courier.post(f"http://shop.example:{inner.port}/", {}, b"{}")
    assert reply.is_refused
    assert inner.calls == []
