"""Crons: each tick once among all services, and the jobs of the table under ids of their tick."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S
from workers.control_processes import control_process

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.scripts.replies import JobState
from tokenbus.worker.control.arq_worker import connect_arq
from tokenbus.worker.control.crons import Crons, chores_of
from tokenbus.worker.control.housekeeping import Housekeeping
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.control.timetable import At, Entry, Timetable
from tokenbus.worker.errors import SettingsInvalid

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.scripts import Scripts

NUM_CRONS = 20
NUM_TICKS = 100


async def test_each_tick_runs_once_among_two_services(
    scripts: Scripts, pool: str, redis_url: str, tmp_path: Path
) -> None:
    """A hundred ticks of twenty crons, two services: each ran once, each made one job."""
    table = tmp_path / "crons.toml"
    second = list(range(60))
    table.write_text(
        "".join(
            f'[[cron]]\nname = "c{n}"\nat = {{ second = {second} }}\n'
            'request = { prompt = "x", max_tokens = 4 }\n'
            for n in range(NUM_CRONS)
        )
    )
    args = (pool, redis_url, "--crons", str(table))
    async with control_process(*args) as one, control_process(*args) as two:

        def ran() -> list[tuple[str, int]]:
            lines = one.logged("cron.ran") + two.logged("cron.ran")
            return [(li["cron"], li["tick_ms"]) for li in lines if li["cron"].startswith("table:")]

        async with asyncio.timeout(PATIENCE_S):
            while len(ran()) < NUM_TICKS:  # noqa: ASYNC110 -- another process logs
                await asyncio.sleep(0.05)
        one.kill()
        two.kill()
    counted = Counter(ran())
    assert set(counted.values()) == {1}
    ticks = {tick for _, tick in counted}
    for cron, tick_ms in counted:
        stamp = datetime.fromtimestamp(tick_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
        job_id = f"cron~{cron.removeprefix('table:')}~{stamp}~1"
        record = await scripts.queue.record(job_id)
        assert record is not None
        assert record.state is JobState.WAITING
    assert (await scripts.lease.load())["jobs"] <= len(counted) + 2 * NUM_CRONS
    assert len(ticks) >= NUM_TICKS // NUM_CRONS


async def test_late_service_does_not_repeat_a_tick(client: AsyncClient, tmp_path: Path) -> None:
    """A tick that arq brings back after it ran, or an older one, submits nothing."""
    entry = Entry.model_validate(
        {"name": "n", "at": {"hour": 3}, "request": {"prompt": "x", "max_tokens": 4}}
    )
    crons = Crons(client, [], table=Timetable(), folder=tmp_path)
    run = crons._entry(entry).coroutine
    for tick_ms in (2000, 2000, 1000):
        await run({"job_id": f"table:n:{tick_ms}"})
    assert (await client.scripts.lease.load())["jobs"] == 1
    assert crons.metrics.crons == {"table:n": 1}


async def test_tick_that_was_cut_short_is_finished_under_the_same_ids(
    client: AsyncClient, tmp_path: Path
) -> None:
    """A service that dies between submitting and taking the tick leaves no second set of jobs."""
    (tmp_path / "texts.jsonl").write_text('{"prompt":"a"}\n\n{"prompt":"b"}\n')
    entry = Entry.model_validate({"name": "n", "at": {"hour": 3}, "requests": "texts.jsonl"})
    crons = Crons(client, [], table=Timetable(), folder=tmp_path)
    await crons._submit(entry, 1000)
    await crons._entry(entry).coroutine({"job_id": "table:n:1000"})
    assert (await client.scripts.lease.load())["jobs"] == 2


async def test_pools_on_one_server_have_ticks_of_their_own(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Ids of arq know no queues: the same cron of two pools must not be one job."""
    async with await AsyncClient.connect(redis_url, f"{pool}-b") as other:
        names = []
        for one in (client, other):
            house = Housekeeping(one, ControlSettings.load())
            crons = Crons(one, chores_of(house), table=Timetable(), folder=tmp_path)
            worker = crons.make_worker(connect_arq(redis_url, crons.queue))
            names += list(worker.functions)
    assert len(set(names)) == len(names) == 2 * 5


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"hour": 3}, {"hour": {3}, "minute": 0, "second": 0}),
        ({"hour": 3, "minute": [0, 30]}, {"hour": {3}, "minute": {0, 30}, "second": 0}),
        ({"weekday": "mon"}, {"weekday": {0}, "hour": 0, "minute": 0, "second": 0}),
        ({"day": 1}, {"day": {1}, "hour": 0, "minute": 0, "second": 0}),
        ({"minute": 5}, {"minute": {5}, "second": 0}),
    ],
)
def test_times_left_out_below_are_zero(given: dict[str, object], wanted: dict[str, object]) -> None:
    """`{ hour = 3 }` is three o'clock, not every minute of the hour."""
    fields = At.model_validate(given).fields()
    assert {name: value for name, value in fields.items() if value is not None} == wanted


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("cron = 3", "cron"),
        ('[[cron]]\nname = "a"\nat = { hour = 24 }\nrequest = { prompt = "x" }', "hour"),
        ('[[cron]]\nname = "a"\nat = {}\nrequest = { prompt = "x" }', "at least one"),
        ('[[cron]]\nname = "a"\nat = { hour = 3 }', "exactly one"),
        ('[[cron]]\nname = "a"\nat = { hour = 3 }\nrequest = { promt = "x" }', "promt"),
        ('[[cron]]\nname = "a"\nat = { hour = 3 }\nrequests = "none.jsonl"', "none.jsonl"),
        (
            '[[cron]]\nname = "a"\nat = { month = 2, day = 31 }\nrequest = { prompt = "x" }',
            "none of",
        ),
        (
            '[[cron]]\nname = "a"\nat = { month = [4, 6], day = [31] }\nrequest = { prompt = "x" }',
            "none of its months",
        ),
        ('[[cron]]\nname = "a"\nat = { hour = [] }\nrequest = { prompt = "x" }', "hour"),
        ('[[cron]]\nname = "a"\nat = { hour = true }\nrequest = { prompt = "x" }', "hour"),
        ('timezone = "Mars/Olympus"', "Mars"),
        ("[[cron", "crons.toml"),
    ],
)
def test_wrong_table_stops_the_start(tmp_path: Path, text: str, why: str) -> None:
    """A table with a mistake is refused before anything runs, and the place is named."""
    path = tmp_path / "crons.toml"
    path.write_text(text)
    with pytest.raises(SettingsInvalid, match=why):
        Timetable.load(path)


def test_file_of_requests_has_a_line_each_whatever_they_hold(tmp_path: Path) -> None:
    """Characters that end lines elsewhere are text in JSON; editors begin files with a mark."""
    (tmp_path / "crons.toml").write_text(
        '\ufeff[[cron]]\nname = "a"\nat = "15 3 * * *"\nrequests = "all.jsonl"'
    )
    prompts = ["one\u2028two", "three\x85four\x0cfive", "six"]
    lines = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "all.jsonl").write_bytes(("\ufeff" + "\r\n".join(lines)).encode())
    [entry] = Timetable.load(tmp_path / "crons.toml").cron
    assert [request.prompt for request in entry.build(tmp_path)] == prompts
