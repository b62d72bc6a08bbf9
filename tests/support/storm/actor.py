"""Those who make calls in a schedule."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storm.network import Network


@dataclass(eq=False)
class Actor:
    """Whoever makes calls. A paused one gets no replies; a cut one loses its next call."""

    name: str
    network: Network
    is_paused: bool = False
    is_cut: bool = False

    async def execute_command(self, *args: Any) -> Any:
        """Make one call and wait for what becomes of it. Raises: CallLost."""
        return await self.network.make(self, args)

    def pipeline(self, *, transaction: bool) -> CallsInOrder:
        """Collect calls to be sent together; the server serves others in between."""
        assert not transaction
        return CallsInOrder(self)


@dataclass
class CallsInOrder:
    """Calls of one actor that the server gets in order; the first that is lost takes the rest."""

    actor: Actor
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def execute_command(self, *args: Any) -> None:
        """Add a call."""
        self.calls.append(args)

    async def execute(self, *, raise_on_error: bool) -> list[Any]:
        """Make the calls and wait for what becomes of them. Raises: CallLost."""
        assert not raise_on_error
        return [await self.actor.execute_command(*args) for args in self.calls]
