"""The demo's jobs are what a shop would send."""

from __future__ import annotations

from collections import Counter

from tokenbus.worker.demo.jobs import shop_jobs


def test_two_dozen_jobs_are_distinct_and_share_three_prompts() -> None:
    """Each of the 24 questions is asked once, eight at each of three teams with one prompt each."""
    jobs = shop_jobs(24)
    assert len({job.question for job in jobs}) == 24
    assert set(Counter(job.system for job in jobs).values()) == {8}
    assert len({(job.team, job.system) for job in jobs}) == 3


def test_every_prefix_of_the_list_is_mixed() -> None:
    """The first nine jobs, which the taxi drives, hold three of each team."""
    assert set(Counter(job.team for job in shop_jobs(9)).values()) == {3}


def test_more_jobs_than_questions_repeat_the_list() -> None:
    """Any number of jobs can be sent."""
    assert shop_jobs(30)[24:] == shop_jobs(6)


def test_messages_are_a_system_prompt_and_a_question() -> None:
    """Bus and taxi get the same chat."""
    job = shop_jobs(1)[0]
    assert [(m["role"], m["content"]) for m in job.messages] == [
        ("system", job.system),
        ("user", job.question),
    ]
