"""The line of a finished job: why it ended, as chat APIs say it, and how many choices ended so."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
from workers.parts import a_member

from tokenbus.engine.chat.usage import Usage
from tokenbus.producer.contract.events import Finish, ToolCall
from tokenbus.producer.contract.messages.job_chat import JobChat
from tokenbus.producer.scripts.replies import PulledJob
from tokenbus.producer.telemetry.histogram import BOUNDS_S
from tokenbus.worker.held.held_job import Phase
from tokenbus.worker.jobs.finish_log import log_finished

CALL = ToolCall(1, "abcdefghi", "now", "{}", 0)
CHAT = JobChat("qwen3", {"now": {}})


@pytest.mark.parametrize(
    ("choices", "calls", "reason", "counted"),
    [
        (("stop", "stop"), (CALL,), "tool_calls", {"stop": 1, "tool_calls": 1}),
        (("stop", "length"), (CALL,), "length", {"stop": 1, "length": 1}),
        (("stop",), (), "stop", {"stop": 1}),
    ],
)
def test_reason_of_calls_is_told_by_line_and_metrics(
    choices: tuple[str, ...], calls: tuple[ToolCall, ...], reason: str, counted: dict[str, int]
) -> None:
    """A job that stopped with calls says so; one that was cut says that."""
    member, log = a_member(), Mock()
    job = member.held_jobs.take(PulledJob("j", 1, 0, 1, "shop", 1, False, 0, None, b"{}"))
    whole = "length" if "length" in choices else "stop"
    usage = Usage(3, 0, 9, reasoning_tokens=4)
    job.finish = Finish(whole, usage, None, choices, calls, chat=CHAT)
    job.lengths = [0]
    job.move_to(Phase.RUNNING)
    for now in (1.0, 1.004, 1.304):
        job.see_tokens(0, 1, now)
        job.book.token_times.stepped(now, [job], [1], 1)
    job.move_to(Phase.ENDING)
    log_finished(log, job, member.metrics)
    member.metrics.count()
    [line] = log.info.call_args_list
    assert line.kwargs["finish_reason"] == reason
    assert line.kwargs["reasoning_tokens"] == 4
    assert member.metrics.choices == counted
    assert (line.kwargs["itl_p50_ms"], line.kwargs["itl_p99_ms"]) == (300, 300)
    [itl] = [each for each in member.metrics.itl if each.count]
    assert itl.sum_s == pytest.approx(0.304)
    bounds = [bound for bound, count in zip(BOUNDS_S, itl.counts, strict=False) if count]
    assert bounds == [0.005, 0.5]
