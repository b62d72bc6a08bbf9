"""Messages of a job's channel, read as events."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from tokenbus.producer.contract.address import DEFAULT_TENANT
from tokenbus.producer.contract.events import Event, Finish
from tokenbus.producer.contract.keys import KNOWN_VERSIONS, versions_text
from tokenbus.producer.contract.logprobs import per_token
from tokenbus.producer.contract.messages.wire_delta import WireDelta
from tokenbus.producer.errors import SchemaMismatch

_HEADS = tuple(f'{{"v":{version},'.encode() for version in KNOWN_VERSIONS)
_decode = msgspec.json.Decoder(Event).decode


def parse_message(text: bytes | str) -> Event:
    """Read one message of a job's channel.

    Raises: SchemaMismatch for another wire version; ValueError, KeyError or TypeError if the
        message is no event.
    """
    body = text.encode(errors="surrogatepass") if isinstance(text, str) else text
    if body.startswith(_HEADS):
        # A tenth of the time of the general way, and refused for anything unusual.
        try:
            event = _decode(body)
        except (msgspec.MsgspecError, RecursionError):
            pass
        else:
            if not event.logprobs or len(event.logprobs) == len(event.ids):
                return event
    try:
        return _read(json.loads(body))
    except (msgspec.MsgspecError, ArithmeticError, AttributeError, RecursionError) as error:
        raise ValueError("the message is no event") from error


def _read(wire: Any) -> Event:
    """Read what is unusual. Raises: SchemaMismatch; all that something else may raise here."""
    if wire["v"] not in KNOWN_VERSIONS:
        raise SchemaMismatch("v", f"the event {versions_text(wire['v'])}")
    finish = wire.get("finish")
    each = [WireDelta.of_wire(delta) for delta in wire.get("deltas") or ()]
    plain = {name: wire[name] for name in ("v", "job", "text", "ids", "ends")}
    plain |= {name: int(wire[name]) for name in ("epoch", "choice", "from", "to")}
    plain["tenant"] = wire.get("tenant", DEFAULT_TENANT)
    return msgspec.structs.replace(
        msgspec.convert(plain, Event),
        logprobs=per_token(wire.get("logprobs") or (), len(wire["ids"])),
        finish=None if finish is None else Finish.from_wire(finish),
        told=WireDelta.of_wire(wire.get("delta")),
        told_each=tuple(delta or WireDelta() for delta in each),
    )
