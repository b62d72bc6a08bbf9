"""Batches as their owners see them: each line answered once, whatever becomes of the services."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from structlog.testing import capture_logs
from workers.batches import (
    BatchDesk,
    batches_run,
    completion_line,
    names_in,
    num_jobs_run,
)
from workers.control_processes import KEY, control_process, receiver
from workers.null_workers import expected_text, until, worker

from tokenbus.producer.scripts.replies import JobState
from tokenbus.producer.stored.batch_record import BatchStatus
from tokenbus.producer.stored.content_store import ContentStore
from tokenbus.producer.stored.derived_ids import job_of_line, name_of_batch
from tokenbus.worker.control.batches import output_parts
from tokenbus.worker.control.batches.stored_upkeep import sweep_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient


@pytest.fixture
def desk(client: AsyncClient, tmp_path: Path) -> BatchDesk:
    """Give a place for batches of the pool."""
    return BatchDesk(client, str(tmp_path))


async def test_each_line_is_answered_once(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Answers and refusals stand in two files, by the names of their lines, with the counts."""
    lines = [completion_line(number) for number in range(1, 41)]
    lines[4]["body"]["temperature"] = -1
    lines[5]["body"]["prompt"] = ["a", "b"]
    lines[6]["body"] |= {"n": 2, "tenant": "other", "priority": 0, "id": "mine"}
    lines[7]["body"]["prompt_logprobs"] = 1
    async with worker(pool, redis_url), batches_run(desk, tmp_path, batch_window=8):
        batch_id = await desk.create([*lines[:20], b"", b"  ", *lines[20:]])
        state = await desk.ended(batch_id)
    assert state.status is BatchStatus.COMPLETED
    assert (state.total, state.completed, state.failed) == (40, 37, 3)
    output = await desk.rows(state.output_file_id)
    errors = await desk.rows(state.error_file_id)
    assert names_in(output, errors) == {line["custom_id"]: 1 for line in lines}
    by_name = {row["custom_id"]: row for row in output + errors}
    for number in (1, 20, 21, 40):
        response = by_name[f"line-{number}"]["response"]
        assert response["status_code"] == 200
        assert response["body"]["choices"][0]["text"] == expected_text(number, 3)
        assert response["body"]["usage"]["completion_tokens"] == 3
    assert len(by_name["line-7"]["response"]["body"]["choices"]) == 2
    assert {row["custom_id"]: row["response"]["body"]["error"]["param"] for row in errors} == {
        "line-5": "temperature",
        "line-6": "prompt",
        "line-8": "prompt_logprobs",
    }
    assert await num_jobs_run(desk.client) == 37
    assert await num_jobs_run(desk.client, "other") == 0
    assert not [path for path in (tmp_path / "parts").rglob("*") if path.is_file()]


async def test_lines_that_end_amid_a_part_are_written(
    desk: BatchDesk,
    redis_url: str,
    pool: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A part that is slowly written holds its rows when the last line has been answered."""
    write = ContentStore.write

    async def slowly(store: ContentStore, name: str, chunks: AsyncIterator[bytes]) -> int:
        if name.startswith("parts/"):
            await asyncio.sleep(0.5)
        return await write(store, name, chunks)

    monkeypatch.setattr(ContentStore, "write", slowly)
    monkeypatch.setattr(output_parts, "PART_S", 0.001)
    async with worker(pool, redis_url), batches_run(desk, tmp_path):
        state = await desk.ended(await desk.create([completion_line(number) for number in (1, 2)]))
    assert (state.total, state.completed) == (2, 2)
    assert len(await desk.rows(state.output_file_id)) == 2


WRONG_LINES: list[tuple[Any, str]] = [
    (b"{", "invalid_json_line"),
    (b"[1]", "invalid_json_line"),
    (b"\xff\xfe", "invalid_json_line"),
    (completion_line(1) | {"custom_id": ""}, "missing_custom_id"),
    (completion_line(1) | {"custom_id": 7}, "missing_custom_id"),
    (completion_line(1) | {"custom_id": "\ud800"}, "missing_custom_id"),
    (completion_line(0), "duplicate_custom_id"),
    (completion_line(1) | {"method": "GET"}, "invalid_method"),
    (completion_line(1) | {"url": "/v1/embeddings"}, "invalid_url"),
    (completion_line(1) | {"url": ["/v1/completions"]}, "invalid_url"),
    (completion_line(1) | {"url": "/v1/responses"}, "mismatched_url"),
    (completion_line(1) | {"body": "x"}, "missing_body"),
    (completion_line(1, model="other"), "mismatched_model"),
]


async def test_input_with_a_wrong_line_is_not_run(desk: BatchDesk, tmp_path: Path) -> None:
    """The error names the line and what is wrong with it; no job was made of any line."""
    async with batches_run(desk, tmp_path):
        batch_ids = [
            await desk.create([completion_line(0), line, completion_line(2)], model="m")
            for line, _ in WRONG_LINES
        ]
        for batch_id, (line, code) in zip(batch_ids, WRONG_LINES, strict=True):
            state = await desk.ended(batch_id)
            assert state.status is BatchStatus.FAILED, line
            [error] = state.errors
            assert (error["line"], error["code"]) == (2, code), line
            job_id = job_of_line(batch_id, 1, 0, 1)
            assert await desk.client.scripts.queue.record(f"{job_id}@acme") is None


async def test_input_without_lines_or_with_too_many_is_not_run(
    desk: BatchDesk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are told as errors of the batch."""
    monkeypatch.setattr("tokenbus.worker.control.batches.input_check.MAX_LINES", 2)
    async with batches_run(desk, tmp_path):
        empty = await desk.create([b"", b" "])
        long = await desk.create([completion_line(number) for number in range(3)])
        assert (await desk.ended(empty)).errors[0]["code"] == "empty_file"
        assert (await desk.ended(long)).errors[0]["code"] == "too_many_lines"


@pytest.mark.parametrize("how", ["cancelled", "expired"])
async def test_batch_that_has_to_end_tells_of_every_line(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path, how: str
) -> None:
    """What was answered stays; each other line says why it was not, and no job is left."""
    lines = [completion_line(number) for number in range(12)]
    for line in lines[4:]:
        line["body"]["max_tokens"] = 100_000
        line["body"]["ignore_eos"] = True
    now_s = await desk.batches.now_s()
    expires_at = now_s + (1 if how == "expired" else 600)
    async with (
        worker(pool, redis_url, null_tokens_per_s=50),
        batches_run(desk, tmp_path, batch_window=8),
    ):
        batch_id = await desk.create(lines, expires_at=expires_at)
        if how == "cancelled":
            await desk.until(batch_id, 4)
            state = await desk.batches.cancel("0123456789ab", batch_id)
            assert state.status is BatchStatus.CANCELLING
        state = await desk.ended(batch_id)
    assert state.status.value == how
    output, errors = await desk.rows(state.output_file_id), await desk.rows(state.error_file_id)
    assert names_in(output, errors) == {line["custom_id"]: 1 for line in lines}
    assert {row["error"]["code"] for row in errors} == {f"batch_{how}"}
    assert len(output) <= 4
    for number in range(1, 13):
        address = f"{job_of_line(batch_id, number, 0, 1)}@acme"
        record = await desk.client.scripts.queue.record(address)
        assert record is None or record.state is JobState.DONE


async def test_run_that_was_paused_changes_nothing_of_its_heirs(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Of two services each batch is one's; who lost the lease writes no part and no status."""
    batch_id = await desk.create([completion_line(number) for number in range(6)])
    assert await desk.batches.take(batch_id, "earlier", 60_000)
    await desk.batches.move(
        batch_id, "earlier", BatchStatus.IN_PROGRESS, list(BatchStatus), total=6
    )
    await desk.batches.release(batch_id, "earlier")
    async with worker(pool, redis_url), batches_run(desk, tmp_path), batches_run(desk, tmp_path):
        state = await desk.ended(batch_id)
    assert (state.status, state.completed) == (BatchStatus.COMPLETED, 6)
    assert names_in(await desk.rows(state.output_file_id)).total() == 6
    for call in (
        desk.batches.commit(batch_id, "earlier", "part-10", [1], 0),
        desk.batches.move(batch_id, "earlier", BatchStatus.FAILED, list(BatchStatus)),
        desk.batches.close(state, "earlier"),
        desk.batches.renew(batch_id, "earlier", 1000),
    ):
        with pytest.raises(Exception, match="another service"):
            await call
    assert await desk.batches.state(batch_id) == state


@pytest.mark.parametrize("num_kills", [1, pytest.param(2, marks=pytest.mark.slow)])
async def test_services_are_killed_amid_a_batch(
    desk: BatchDesk, redis_url: str, pool: str, tmp_path: Path, num_kills: int
) -> None:
    """Killed while lines run: every line has one row, no line ran twice, its end is told."""
    num_lines = 60 * num_kills
    lines = [completion_line(number) for number in range(num_lines)]
    given = {
        "files_url": str(tmp_path),
        "batch_window": 16,
        "webhook_keys": json.dumps({"acme": KEY}),
        "webhook_allowed_networks": '["127.0.0.1/32"]',
    }
    async with receiver() as shop, worker(pool, redis_url, null_total_tokens_per_s=150):
        batch_id = await desk.create(lines, callback_url=shop.url())
        for kill in range(1, num_kills + 1):
            async with control_process(pool, redis_url, **given) as service:
                await desk.until(batch_id, 30 * kill)
                service.kill()
                await service.process.wait()
            before = await desk.batches.state(batch_id)
            assert before.status is BatchStatus.IN_PROGRESS
        async with control_process(pool, redis_url, **given) as service:
            state = await desk.ended(batch_id)
            await service.until_logged("webhook.tried")
    assert (state.status, state.completed, state.failed) == (BatchStatus.COMPLETED, num_lines, 0)
    rows = await desk.rows(state.output_file_id)
    assert names_in(rows) == {line["custom_id"]: 1 for line in lines}
    for row in rows:
        number = int(row["custom_id"].removeprefix("line-"))
        assert row["response"]["body"]["choices"][0]["text"] == expected_text(number, 3)
    assert await num_jobs_run(desk.client) == num_lines
    [call] = shop.calls
    assert (call.message["type"], call.message["data"]) == ("batch.completed", {"id": batch_id})
    hook = await desk.client.scripts.control.webhook(name_of_batch(batch_id, "acme"))
    assert hook is not None


async def test_sweep_outlives_whatever_a_place_raises(
    desk: BatchDesk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A place whose library cannot tell ages is told of, and the service lives on."""

    async def cannot(_: float) -> list[str]:
        raise NotImplementedError("no times here")

    monkeypatch.setattr(desk.files.contents, "older_than", cannot)
    # Whatever level this process was told to log, by an earlier test or by what `desk` runs.
    structlog.reset_defaults()
    with capture_logs() as told:
        chore = asyncio.create_task(sweep_files(desk.files, desk.client.scripts))
        await until(lambda: bool(told) or chore.done())
    assert not chore.done()
    assert told[0]["reason"] == "NotImplementedError: no times here"
    chore.cancel()
