"""What is done again and again while the session is open."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from redis.exceptions import RedisError, ResponseError

from tokenbus.worker.errors import SessionLost
from tokenbus.worker.session import Session


class _EndOfTestError(Exception):
    """Ends what would go on for ever."""


async def test_work_goes_on_after_a_refusal_and_at_once_after_a_loss() -> None:
    """A refused act is told and followed by a pause; one that lost the session is only repeated."""
    session = Session(Mock(), lease_ttl_s=60.0)
    session.open()
    outcomes: list[Exception | None] = [
        None,
        SessionLost("gone"),
        ResponseError("no"),
        _EndOfTestError(),
    ]
    refusals: list[RedisError] = []

    async def act() -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    with pytest.raises(_EndOfTestError):
        await session.every(0.0, act, refused=refusals.append, refused_pause_s=0.0)
    assert [str(error) for error in refusals] == ["no"]
    assert outcomes == []


async def test_every_listener_hears_of_a_loss_once() -> None:
    """A session that is lost already is not lost again."""
    session = Session(Mock(), lease_ttl_s=60.0)
    first: list[str] = []
    second: list[str] = []
    session.when_lost(first.append)
    session.when_lost(second.append)
    session.open()
    session.lose("the server went away")
    session.lose("and again")
    assert first == second == ["the server went away"]
    assert session.num_losses == 1
