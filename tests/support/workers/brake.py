"""A brake on the engine of a worker beside the test, to kill it at a certain token."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from msgspec.structs import replace

from tokenbus.worker.engine import current_engine
from tokenbus.worker.engine.link import EngineLink
from tokenbus.worker.messages.engine import Credit, StartEngine

if TYPE_CHECKING:
    import pytest

    from tokenbus.engine.config import EngineConfig
    from tokenbus.engine.null.null_config import NullConfig
    from tokenbus.worker.messages.engine import Command


class Brake:
    """Lets an engine generate some tokens and `num_ahead`, and a step more, until it is released.

    Its worker holds back the credit for the tokens that were logged.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, num_ahead: int) -> None:
        self._credit = sys.maxsize
        self._held: list[tuple[EngineLink, Credit]] = []
        start_of, send = StartEngine.of, EngineLink.send
        self._send = send

        def start_tight(config: EngineConfig | NullConfig, step_log: str | None) -> StartEngine:
            return replace(start_of(config, step_log), hard_backlog_tokens=num_ahead)

        def send_braked(link: EngineLink, command: Command) -> None:
            if isinstance(command, Credit):
                given = min(command.num_tokens, self._credit)
                self._held.append((link, Credit(command.num_tokens - given)))
                self._credit -= given
                command = Credit(given)
            send(link, command)

        monkeypatch.setattr(StartEngine, "of", start_tight)
        monkeypatch.setattr(EngineLink, "send", send_braked)
        # In larger lumps credit would come with the beats, twice a second.
        monkeypatch.setattr(current_engine, "CREDIT_LUMP_TOKENS", 1)

    def set(self, num_tokens: int) -> None:
        """Stop the engine after so many tokens from now on."""
        self._credit = num_tokens

    def release(self) -> None:
        """Hold nothing back from now on; the next engine runs, one that waits here for ever."""
        self._credit = sys.maxsize
        self._held.clear()

    def resume(self) -> None:
        """Let the engine itself run on, with the credit that was held back."""
        held = list(self._held)
        self.release()
        for link, credit in held:
            self._send(link, credit)
