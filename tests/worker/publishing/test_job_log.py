"""The states of a job log: which moves are legal, and what each state asks of the log."""

from __future__ import annotations

from itertools import permutations

import pytest
from workers.publisher_bench import take_over

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
from tokenbus.producer.contract.events import Event
from tokenbus.worker.errors import WorkerError
from tokenbus.worker.messages.publishing import TakeOver, TextRules
from tokenbus.worker.publishing.job_log import JobLog
from tokenbus.worker.publishing.log_states import LogAccess, LogState, Turn

OPEN, ENDING, COMMITTED = LogState.OPEN, LogState.ENDING, LogState.COMMITTED
HANDING_BACK, DROPPED = LogState.HANDING_BACK, LogState.DROPPED
UNKNOWN, AHEAD, RESTORING = LogAccess.UNKNOWN, LogAccess.AHEAD, LogAccess.RESTORING
KNOWN, BARRED = LogAccess.KNOWN, LogAccess.BARRED

LEGAL = {
    (OPEN, ENDING),
    (OPEN, COMMITTED),
    (OPEN, HANDING_BACK),
    (OPEN, DROPPED),
    (ENDING, COMMITTED),
    (ENDING, DROPPED),
    # The server forgot an end, which is written again.
    (COMMITTED, ENDING),
    (COMMITTED, DROPPED),
    (HANDING_BACK, COMMITTED),
    (HANDING_BACK, DROPPED),
}
LEGAL_ACCESS = {
    (UNKNOWN, KNOWN),
    (UNKNOWN, BARRED),
    (AHEAD, KNOWN),
    (AHEAD, BARRED),
    (RESTORING, KNOWN),
    (RESTORING, UNKNOWN),
    (RESTORING, BARRED),
    (KNOWN, UNKNOWN),
    (KNOWN, AHEAD),
    (KNOWN, RESTORING),
    (KNOWN, BARRED),
    (BARRED, UNKNOWN),
    (BARRED, AHEAD),
}


def a_log(*, is_ahead: bool = False) -> JobLog:
    """Make a job log."""
    return JobLog(take_over(is_ahead=is_ahead), enqueue=lambda _: None)


@pytest.mark.parametrize(("start", "to"), list(permutations(LogState, 2)))
def test_log_moves_as_the_table_says(start: LogState, to: LogState) -> None:
    """Each of the ten legal moves is made; every other raises and leaves the state as it was."""
    job = a_log()
    job.state = start
    if (start, to) in LEGAL:
        job.move_to(to)
        assert job.state is to
    else:
        with pytest.raises(WorkerError, match=f"cannot go from {start.value} to {to.value}"):
            job.move_to(to)
        assert job.state is start


@pytest.mark.parametrize(("start", "to"), list(permutations(LogAccess, 2)))
def test_access_moves_as_the_table_says(start: LogAccess, to: LogAccess) -> None:
    """Each legal move of the access is made; every other raises and leaves it as it was."""
    job = a_log()
    job.access = start
    if (start, to) in LEGAL_ACCESS:
        job.set_access(to)
        assert job.access is to
    else:
        with pytest.raises(WorkerError, match=f"cannot turn from {start.value} to {to.value}"):
            job.set_access(to)
        assert job.access is start


def test_staying_is_no_move() -> None:
    """A state or an access may be set again: a log can say the same thing twice."""
    for state in LogState:
        job = a_log()
        job.state = state
        job.move_to(state)
        assert job.state is state
    for access in LogAccess:
        job = a_log()
        job.access = access
        job.set_access(access)
        assert job.access is access


def test_log_that_was_not_found_empty_is_ahead_again_after_each_loss() -> None:
    """Barred, or ended by another: the next session asks once more whether the log is empty.

    Only a takeover that found it empty lets later sessions go on from what memory holds.
    """
    job = a_log(is_ahead=True)
    for access in (BARRED, KNOWN):
        job.set_access(access)
        job.void()
        assert job.access is AHEAD
    job.take_over()
    job.void()
    assert job.access is UNKNOWN


def test_log_that_is_being_read_is_left_to_its_reader() -> None:
    """The session opens anew meanwhile: there is no takeover before the reading has ended."""
    job = a_log()
    job.take_over()
    job.set_access(RESTORING)
    job.void()
    assert job.access is RESTORING
    assert not job.wants_log


@pytest.mark.parametrize("access", LogAccess)
@pytest.mark.parametrize("state", LogState)
def test_state_and_access_say_what_is_asked_of_the_log(state: LogState, access: LogAccess) -> None:
    """A log out of reach is asked nothing; a known one tokens or an end; an unknown one a takeover.

    One that was started ahead waits for its first token or its end, which create its log.
    """
    job = a_log()
    job.restore((), build_null_tokenizer())
    job.state, job.access = state, access
    wants_takeover = access is UNKNOWN and state in (OPEN, ENDING, COMMITTED)
    wants_takeover |= access is AHEAD and state is COMMITTED
    wants_end = access in (KNOWN, AHEAD) and state is ENDING
    assert job.wants_log == (wants_takeover or wants_end)
    assert job.begins == (access is AHEAD and state is ENDING)
    assert job.is_fully_logged == (access is KNOWN)
    job.last = 1
    wants_tokens = access in (KNOWN, AHEAD) and state in (OPEN, HANDING_BACK)
    assert job.wants_log == (wants_takeover or wants_end or wants_tokens)
    assert job.begins == (access is AHEAD and state in (OPEN, ENDING, HANDING_BACK))
    assert not job.is_fully_logged


@pytest.mark.parametrize("access", LogAccess)
@pytest.mark.parametrize("state", LogState)
def test_overdue_job_wants_its_marker_while_it_runs(state: LogState, access: LogAccess) -> None:
    """A takeover is asked for where no token has come; nothing else changes by it."""
    job = a_log()
    job.state, job.access = state, access
    before = job.wants_log
    job.is_overdue = True
    assert job.wants_log == (before or (state is OPEN and access is AHEAD))
    assert job.begins == (access is AHEAD and state is ENDING)


def test_job_goes_back_once_nothing_is_left_to_log() -> None:
    """Not while it is open, not while a call is under way, not before its tokens are logged."""
    job = a_log()
    job.take_over()
    assert not job.is_all_logged
    job.move_to(HANDING_BACK)
    assert job.is_all_logged
    job.turn = Turn.IN_CALL
    assert not job.is_all_logged
    job.turn = Turn.QUEUED
    assert job.is_all_logged
    job.last = 1
    assert not job.is_all_logged
    job.set_access(BARRED)
    assert job.is_all_logged


# Of each end: the token that the log ends with, the stop strings, the stop ids, and the reason.
_LOGGED_ENDS = {
    "a special token as a stop string": ("<|call|>", ("<|call|>",), (), "<|call|>"),
    "the model's own end": ("<|end|>", ("<|end|>",), (), None),
    "a stop id": ("<|call|>", ("<|call|>",), ("<|call|>",), 513),
    "a stop id with text": ("b", ("b",), ("b",), 98),
}


@pytest.mark.parametrize("case", _LOGGED_ENDS)
def test_end_is_read_from_the_log_as_it_was_told(case: str) -> None:
    """A choice that stopped under its last owner has stopped, for the same reason, under the next.

    Its ids alone decide: no text of a special token stands in the log.
    """
    token, stop, stop_tokens, reason = _LOGGED_ENDS[case]
    tokenizer = build_null_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|end|>", "<|call|>"]})
    id_of = tokenizer.get_vocab()
    own, ids = id_of["<|end|>"], [id_of["a"], id_of[token]]
    rules = TextRules(
        num_choices=1,
        max_tokens=10,
        prompt_tail=(),
        stop=stop,
        stop_ids=(*(id_of[name] for name in stop_tokens), own),
        eos_ids=(own,),
    )
    order = TakeOver(key=1, job_id="j", epoch=2, prompt_tokens=1, rules=rules)
    job = JobLog(order, enqueue=lambda _: None)
    logged = Event("j", 1, 0, 1, 2, text="a", ids=tuple(ids), ends=(1, 1))
    job.restore([logged], tokenizer)
    assert job.reasons == ["stop"]
    job.decide(job.outcome())
    assert job.finish is not None
    assert job.finish.stop_reason_of(0) == reason
