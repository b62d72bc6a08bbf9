"""Messages of a job's channel, read as events."""

from __future__ import annotations

import json

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
        except msgspec.MsgspecError:
            pass
        else:
            if not event.logprobs or len(event.logprobs) == len(event.ids):
                return event
    wire = json.loads(body)
    if wire["v"] not in KNOWN_VERSIONS:
        raise SchemaMismatch("v", f"the event {versions_text(wire['v'])}")
    finish = wire.get("finish")
    each = [WireDelta.of_wire(delta) for delta in wire.get("deltas") or ()]
    return Event(
        job_id=wire["job"],
        epoch=int(wire["epoch"]),
        choice=int(wire["choice"]),
        start=int(wire["from"]),
        to=int(wire["to"]),
        text=wire["text"],
        ids=tuple(wire["ids"]),
        ends=tuple(wire["ends"]),
        logprobs=per_token(wire.get("logprobs") or (), len(wire["ids"])),
        finish=None if finish is None else Finish.from_wire(finish),
        tenant=wire.get("tenant", DEFAULT_TENANT),
        version=wire["v"],
        told=WireDelta.of_wire(wire.get("delta")),
        told_each=tuple(delta or WireDelta() for delta in each),
    )
