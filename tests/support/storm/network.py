"""A network between actors and one real server, on which a schedule decides what arrives when.

Every call of every actor waits here until the schedule picks it. Then it is carried out, or its
request, its reply or both go missing, or it lands long after its sender gave up, or it lands twice.
The server is spoken to by a blocking socket, so that nothing but the schedule decides the order.
"""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from redis.exceptions import NoScriptError, ResponseError
from storm.audit import TTL_SCALE
from storm.wire import Wire

from tokenbus.producer.contract.channel import parse_message
from tokenbus.producer.scripts import source

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Iterator

    from storm.actor import Actor

    from tokenbus.producer.contract.events import Event

# Scripts that publish.
_LOUD = ("append", "begin", "end")
_FATES = ("request lost", "reply lost", "late", "twice")
_WEIGHTS = {"listen": 0.4, "tick": 0.4, "scan": 0.4, "renew": 0.6}


class CallLost(ConnectionError):
    """What a caller sees of a call whose request or reply went missing."""


@dataclass
class Clock:
    """The monotonic clock of all actors, which the schedule moves on."""

    now_s: float = 0.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now_s


@dataclass(eq=False, slots=True)
class Call:
    """One request under way; `name` is its script, or its command in capitals."""

    actor: Actor
    name: str
    args: tuple[Any, ...]
    reply: asyncio.Future[Any]
    outcome: tuple[Any] | Exception | None = None

    @property
    def is_on_its_way(self) -> bool:
        """Tell whether the server has not seen it yet."""
        return self.name != "listen" and self.outcome is None

    @property
    def weight(self) -> float:
        """Return how often it is picked beside others: work before housekeeping."""
        return _WEIGHTS.get(self.name, 1.0)


@contextmanager
def _refusals() -> Iterator[None]:
    """Pass over what the server refuses without having done anything, as nobody hears of it."""
    try:
        yield
    except ResponseError as error:
        if not str(error).startswith(("NOSCRIPT", "UNLEASED")):
            raise


@dataclass(frozen=True, slots=True)
class Late:
    """A request that is still on its way, though its sender gave up."""

    sent_at_s: float
    name: str
    args: tuple[Any, ...]


@dataclass
class Network:
    """All calls under way between the actors of one schedule and the server."""

    path: str
    pool: str
    chance: random.Random
    clock: Clock
    fault_rate: float = 0.12
    pending: list[Call] = field(default_factory=list)
    late: list[Late] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)
    on_sent: Callable[[str, tuple[Any, ...]], None] = lambda *_: None
    on_done: Callable[[str, tuple[Any, ...], Any], None] = lambda *_: None
    on_event: Callable[[str, Event], None] = lambda *_: None

    def __post_init__(self) -> None:
        """Connect to the server and listen to every job's channel."""
        self.wire = Wire(self.path)
        self._socket_reader = Wire(self.path)
        self._socket_reader.send("PSUBSCRIBE", f"{{tb:{self.pool}:*")
        self._socket_reader.read()
        self._silence = f"{{tb:{self.pool}:silence".encode()
        self._names: dict[str, str] = {}

    def close(self) -> None:
        """Close the connections."""
        self.wire.close()
        self._socket_reader.close()

    async def make(self, actor: Actor, args: tuple[Any, ...]) -> Any:
        """Put a call under way and wait for its end."""
        if actor.is_cut:
            actor.is_cut = False
            raise CallLost(f"{actor.name} finds its connection closed")
        call = Call(actor, self._name(args), args, asyncio.get_running_loop().create_future())
        self.pending.append(call)
        try:
            return await call.reply
        finally:
            self.forget(call)

    def forget(self, call: Call) -> None:
        """Let the schedule pick a call no more, if it has not yet."""
        if call in self.pending:
            self.pending.remove(call)

    def settle(self, call: Call) -> None:
        """Decide one call: carried out, or one of the ways in which it goes wrong."""
        self.pending.remove(call)
        if not call.is_on_its_way:
            self._tell(call)
            return
        fate = self._draw_fate(call)
        if fate in ("late", "twice"):
            self._delay(call)
        if fate in ("request lost", "late"):
            self._note(call.actor.name, call.name, call.args, fate)
            call.outcome = CallLost(f"{call.name} was lost")
        else:
            try:
                call.outcome = (self.carry_out(call.actor.name, call.name, call.args, fate),)
            except ResponseError as error:
                call.outcome = error
            if fate == "reply lost":
                call.outcome = CallLost(f"{call.name} was lost")
        self._tell(call)

    def _draw_fate(self, call: Call) -> str:
        if self.chance.random() >= self.fault_rate:
            return "done"
        fate = self.chance.choice(_FATES)
        # A connection delivers once, and nobody makes the same pull again.
        return "done" if fate == "twice" and call.name == "pull" else fate

    def abandon(self, actor: Actor) -> None:
        """Let an actor give up its calls under way; their requests may have been sent."""
        for call in [call for call in self.pending if call.actor is actor]:
            self.pending.remove(call)
            if call.is_on_its_way and self.chance.random() < 0.5:
                self._delay(call)
            self._fail(call)

    def break_all(self, actors: list[Actor]) -> None:
        """Close every connection: calls under way are carried out or not, all replies are lost."""
        for call in self.pending.copy():
            self.pending.remove(call)
            if call.is_on_its_way and self.chance.random() < 0.5:
                self._quietly(call.actor.name, call.name, call.args, "reply lost")
            self._fail(call)
        self.late.clear()
        for actor in actors:
            actor.is_cut = True

    def answer_early(self, actors: list[Actor], *, surely: bool = False) -> None:
        """Carry out what these actors have sent, or lose it; they learn of it when they run.

        With `surely` nothing is lost.
        """
        for call in [call for call in self.pending if call.actor in actors]:
            if call.name == "listen" or call.outcome is not None:
                continue
            fate = 1 if surely else self.chance.randrange(3)
            call.outcome = CallLost(f"{call.name} was lost")
            if fate > 0:
                with _refusals():
                    answer = self.carry_out(call.actor.name, call.name, call.args, "early")
                    if fate == 1:
                        call.outcome = (answer,)

    def deliver_late(self, share: float, since_s: float) -> None:
        """Let late requests that were sent after `since_s` land, in any order."""
        self.chance.shuffle(self.late)
        for _ in range(round(len(self.late) * share)):
            late = self.late.pop()
            if late.sent_at_s >= since_s:
                self._quietly("late", late.name, late.args, "lands")

    def carry_out(self, who: str, name: str, args: tuple[Any, ...], fate: str) -> Any:
        """Run a call on the server and hand out what it published. Raises: ResponseError."""
        sent = (*args[:2], args[2] * TTL_SCALE) if name == "PEXPIRE" else args
        self.on_sent(name, args)
        try:
            answer = self.wire.run(*sent)
        except NoScriptError:
            self._note(who, name, args, "NOSCRIPT")
            raise
        self._note(who, name, args, f"{fate} -> {answer!r}")
        if name in _LOUD:
            self._listen()
        self.on_done(name, args, answer)
        return answer

    def _listen(self) -> None:
        """Hand out what was published up to now."""
        self.wire.run("PUBLISH", self._silence, "")
        while (message := self._socket_reader.read())[2] != self._silence:
            self.on_event(message[2].decode(), parse_message(message[3]))

    def _quietly(self, who: str, name: str, args: tuple[Any, ...], fate: str) -> None:
        """Run a call whose answer nobody gets."""
        with _refusals():
            self.carry_out(who, name, args, fate)

    def _delay(self, call: Call) -> None:
        self.late.append(Late(self.clock.now_s, call.name, call.args))

    def _fail(self, call: Call) -> None:
        call.outcome = CallLost(f"{call.name} was lost")
        self._tell(call)

    @staticmethod
    def _tell(call: Call) -> None:
        """Let the caller know what it gets to know."""
        if call.reply.done():
            return
        if isinstance(call.outcome, Exception):
            call.reply.set_exception(call.outcome)
        else:
            call.reply.set_result(call.outcome[0] if call.outcome else None)

    def _name(self, args: tuple[Any, ...]) -> str:
        """Name the script of a call, or its command."""
        if args[0] not in ("EVALSHA", "EVAL"):
            return str(args[0])
        if not self._names:
            for name in SCRIPTS:
                self._names[source.script_sha(name)] = name
                self._names[source.script_source(name)] = name
        return self._names[args[1]]

    def _note(self, who: str, name: str, args: tuple[Any, ...], fate: str) -> None:
        is_script = args[0] in ("EVALSHA", "EVAL")
        shown = [_shown(arg) for arg in args[3 + args[2] :]] if is_script else args[1:]
        self.note(f"{who}: {name} {' '.join(map(str, shown))} {fate}")

    def note(self, line: str) -> None:
        """Remember a line for whoever has to find out what went wrong."""
        self.trace.append(line)


SCRIPTS = (
    *(
        "append",
        "begin",
        "cancel",
        "complete_many",
        "end",
        "expire_many",
        "retain_many",
        "drop_many",
        "raise_epoch",
        "pull",
        "renew",
        "requeue",
    ),
    *("scan", "submit", "takeover", "tick"),
)


def _shown(argument: Any) -> str:
    """Shorten an argument."""
    text = argument.decode(errors="replace") if isinstance(argument, bytes) else str(argument)
    if text.startswith("[["):
        return str([item[:6] for item in json.loads(text)])
    return text if len(text) <= 60 else text[:60] + "…"
