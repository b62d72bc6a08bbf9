"""What parts of a worker say to the engine, whichever process it is."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from workers.parts import an_engine

from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.engine.current_engine import CREDIT_LUMP_TOKENS, CurrentEngine
from tokenbus.worker.errors import EngineDied
from tokenbus.worker.held.held_job import HeldJob, Phase
from tokenbus.worker.messages.engine import AbortRequest, Credit


def a_job() -> HeldJob:
    """Make a job that was pulled."""
    return HeldJob(PulledJob("s0-j", 1, 0, 1, "t", 1, False, 0, None, b""), 7)


def test_nothing_can_be_said_before_an_engine_has_started() -> None:
    """A command without an engine is a mistake of the worker, not one to be lost."""
    engine = CurrentEngine(stall_s=1.0)
    assert not engine.is_up
    assert engine.moves
    assert (engine.pid, engine.stats()) == (None, None)
    with pytest.raises(EngineDied, match="no engine"):
        engine.credit(CREDIT_LUMP_TOKENS)


def test_only_a_job_in_the_engine_is_taken_out_of_it() -> None:
    """One that was never added, or has ended, costs no command."""
    engine, sent = an_engine()
    job = a_job()
    engine.stop(job)
    engine.stop_choice(job, 1)
    assert sent == []
    job.move_to(Phase.RUNNING)
    engine.stop_choice(job, 1)
    engine.stop(job)
    assert sent == [AbortRequest(7, 1), AbortRequest(7)]


def test_credit_goes_back_in_lumps_unless_the_engine_idles() -> None:
    """Small amounts add up, and an idle engine gets what there is."""
    engine, sent = an_engine()
    engine.credit(CREDIT_LUMP_TOKENS - 1)
    assert sent == []
    engine.credit(1)
    engine.credit(3)
    engine.credit(0, flush=True)
    engine.credit(0, flush=True)
    assert sent == [Credit(CREDIT_LUMP_TOKENS), Credit(3)]


def test_commands_go_to_the_process_of_now() -> None:
    """After a restart the one before hears nothing more."""
    engine, before = an_engine()
    after: list[object] = []
    link: Any = Mock(is_alive=True, send=after.append)
    engine.replace(link)
    engine.credit(CREDIT_LUMP_TOKENS)
    assert (before, after) == ([], [Credit(CREDIT_LUMP_TOKENS)])
