"""Notices to a worker: what is none does nothing."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from workers.parts import a_member

from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.worker.pool.cancel_listener import CancelListener


@pytest.mark.parametrize(
    "text",
    [
        *(b"", b"cancel", b"cancel 7", b"cancel x j", b"cancel 6 j", b"cancel 7 k", b"cancel -7 j"),
        *(b"\xff \xff \xff", b"cancel \xc2\xb2 j", b"cancel " + b"7" * 5000 + b" j"),
    ],
    ids=range(10),
)
def test_notice_that_is_none_ends_nothing(text: bytes) -> None:
    """Anybody who may publish can write there: neither the job nor the worker ends by that."""
    member, settlement = a_member(), Mock()
    job = member.held_jobs.take(PulledJob("j", 7, 0, 1, "t", 1, False, 0, None, b""))
    listener = CancelListener(member, Mock(), settlement)
    listener._take(text)
    settlement.flag.assert_not_called()
    listener._take(b"cancel 7 j")
    settlement.flag.assert_called_once_with(job, "cancel")
