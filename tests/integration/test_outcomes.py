"""What a result says about its end: which stop it met, and why the engine gave it up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from workers.null_workers import expected_ids, expected_text, follow, worker

from tokenbus.producer.contract.result import JobFailed

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient


async def test_result_and_end_event_name_the_stop_of_each_choice(
    client: AsyncClient, redis_url: str, pool: str
) -> None:
    """A stop string or stop id is named as offline; an end by length names nothing."""
    seed, length = 3, 40
    ids, text = expected_ids(seed, length), expected_text(seed, length)
    stop_id = next(token for token in ids[5:] if token not in ids[:5])
    stop = text[20:26]
    async with worker(pool, redis_url):
        by_text = await client.submit("hello", seed=seed, max_tokens=length, stop=["?!", stop])
        by_id = await client.submit("hello", seed=seed, max_tokens=length, stop_token_ids=[stop_id])
        by_length = await client.submit("hello", seed=seed, max_tokens=length)
        for job, reason in ((by_text, stop), (by_id, stop_id), (by_length, None)):
            story = await follow(client, job)
            assert story.finish is not None
            assert story.finish.stop_reason_of(0) == reason
            result = await client.result(job)
            assert result.choices[0].stop_reason == reason
            assert result.choices[0].reason == ("length" if reason is None else "stop")


async def test_stop_is_named_per_choice(client: AsyncClient, redis_url: str, pool: str) -> None:
    """Of two choices only the one that met the stop string names it."""
    seed, length = 5, 30
    texts = [expected_text(seed, length, choice) for choice in range(2)]
    stop = next(
        texts[0][at : at + 5] for at in range(10, 60) if texts[0][at : at + 5] not in texts[1]
    )
    async with worker(pool, redis_url):
        job = await client.submit("hello", seed=seed, n=2, max_tokens=length, stop=[stop])
        result = await client.result(job)
        assert [choice.stop_reason for choice in result.choices] == [stop, None]
        assert [choice.reason for choice in result.choices] == ["stop", "length"]


@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_grammar_that_fails_in_the_engine_has_a_code_of_its_own(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """Callers can tell a schema that cannot be enforced from an engine that broke."""
    model = TinyModel(tmp_path)
    settings = {"engine": "paged", "model": str(model.folder), "dtype": "float32"}
    schema = '{"type": "string", "format": "datetime"}'
    async with worker(pool, redis_url, **settings, device="cpu", num_pages=64, num_threads=1):
        job = await client.submit(
            "hello", max_tokens=8, grammar={"kind": "json_schema", "source": schema}
        )
        with pytest.raises(JobFailed, match="datetime") as failed:
            await client.result(job, timeout_s=PATIENCE_S)
        assert (failed.value.code, failed.value.field) == ("grammar", "grammar")
        job = await client.submit("hello", max_tokens=8, guided_regex="(")
        with pytest.raises(JobFailed, match="unclosed group") as failed:
            await client.result(job, timeout_s=PATIENCE_S)
        assert (failed.value.code, failed.value.field) == ("grammar", "grammar")
        assert "\n" not in str(failed.value)
        assert "start:" not in str(failed.value)
        healthy = await client.submit("hello", max_tokens=8)
        assert (await client.result(healthy, timeout_s=PATIENCE_S)).finish.reason == "length"
