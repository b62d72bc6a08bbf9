"""Requests as the client of OpenAI writes them, through the queue: in Python and as raw bodies."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from patience import PATIENCE_S
from workers.null_workers import command, worker

from tokenbus.engine import LLM
from tokenbus.engine.errors import RequestRejected
from tokenbus.producer.contract.result import JobFailed

if TYPE_CHECKING:
    from tokenbus.producer.client.async_client import AsyncClient
    from tokenbus.producer.scripts import Scripts

_ROOT = Path(__file__).parents[1]
BODIES: dict[str, Any] = json.loads(
    (_ROOT / "producer" / "contract" / "openai_requests.json").read_text()
)


async def raw_answer(scripts: Scripts, body: dict[str, Any]) -> Any:
    """Send a body as any Redis client does, and return the answer of the inbox."""
    secret = "r" * 16
    fields: Any = {"job": json.dumps(body), "reply": secret}
    await scripts.redis.xadd(scripts.keys.of("inbox2"), fields)
    found = await command(scripts, "BLPOP", scripts.keys.of("replies", secret), PATIENCE_S)
    return json.loads(found[1])


async def test_bodies_of_the_client_are_answered(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """Every body, unchanged, becomes a job and ends; so it does through the inbox."""
    async with worker(pool, redis_url):
        jobs = await client.submit_many([{**body, "max_tokens": None} for body in BODIES.values()])
        for name, job in zip(BODIES, jobs, strict=True):
            result = await client.result(job, timeout_s=PATIENCE_S)  # type: ignore[arg-type]
            assert result.finish.reason in ("stop", "length"), name
            assert len(result.choices) == BODIES[name].get("n", 1)
        for name in ("parts", "tool results", "parse"):
            answer = await raw_answer(scripts, BODIES[name])
            assert "finish" not in answer, answer
            result = await client.result(answer["job"], timeout_s=PATIENCE_S)
            assert result.finish.reason in ("stop", "length"), name


async def test_model_of_another_name_is_refused_by_the_worker(
    client: AsyncClient, scripts: Scripts, redis_url: str, pool: str
) -> None:
    """A job may ask for the model by its name or another one that the worker was given."""
    settings: Any = {"served_model_name": ["shop", "shop-large"]}
    async with worker(pool, redis_url, **settings):
        for model in ("smollm2-135m", "shop", "shop-large", None):
            assert (await client.submit("a", model=model, max_tokens=2, wait=True)).text
        raw = await raw_answer(scripts, {"prompt": "a", "model": "gpt-4o"})
        job = await client.submit("a", model="gpt-4o", max_tokens=2)
        for refused in (job, raw["job"]):
            with pytest.raises(JobFailed, match="'gpt-4o' is not served here") as caught:
                await client.result(refused, timeout_s=PATIENCE_S)
            assert (caught.value.code, caught.value.field) == ("invalid_request", "model")


@pytest.mark.slow
# One kind of server: what is shown is the engine's and the worker's, and starting them is dear.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_both_doors_answer_alike(
    client: AsyncClient, redis_url: str, pool: str, tmp_path: Path
) -> None:
    """The same dicts through the queue and through `LLM.chat`: texts, prompts, logprobs, errors."""
    model = TinyModel(tmp_path)
    settings: dict[str, Any] = {
        "dtype": "float32", "device": "cpu", "num_pages": 200, "num_threads": 1,
    }  # fmt: skip
    llm = await asyncio.to_thread(LLM, model.folder, served_model_name="smollm2-135m", **settings)
    served = {"served_model_name": ["smollm2-135m"], "engine": "paged", "model": str(model.folder)}
    changed: dict[str, Any] = {"max_tokens": 12, "max_completion_tokens": None, "seed": 5}
    async with worker(pool, redis_url, **served, **settings):
        for name, body in BODIES.items():
            request = body | changed
            result = await client.result(await client.submit(**request), timeout_s=PATIENCE_S)
            (output,) = await asyncio.to_thread(llm.chat, progress=False, **request)
            assert [c.text for c in output.choices] == [c.text for c in result.choices], name
            assert len(output.prompt_ids) == result.finish.usage.prompt_tokens, name
        scored: dict[str, Any] = {"max_tokens": 0, "prompt_logprobs": 1}
        for ids in ([7], [7, 8, 9]):
            result = await client.submit(token_ids=ids, **scored, wait=True, timeout_s=PATIENCE_S)
            (output,) = await asyncio.to_thread(llm.generate, token_ids=ids, **scored)
            assert (output.text, result.text, output.token_ids) == ("", "", [])
            assert output.finish_reason == result.finish.reason == "length"
            assert result.finish.usage.completion_tokens == 0
            entries = output.prompt_logprobs or ()
            assert len(entries) == len(result.prompt_logprobs) == len(ids)
            for entry, wire in zip(entries, result.prompt_logprobs, strict=True):
                assert (entry is None) == (wire is None)
                if entry is not None:
                    assert wire[:2] == [pytest.approx(entry.logprob, abs=1e-5), entry.rank]
        for wrong in ({"model": "gpt-4o"}, {"token_ids": [600]}, {"max_tokens": 2000}):
            request = {"token_ids": [7]} | wrong
            with pytest.raises(JobFailed) as refused:
                await client.submit(**request, wait=True, timeout_s=PATIENCE_S)
            with pytest.raises(Exception) as offline:  # noqa: PT011 - compared below
                llm.generate(progress=False, **request)
            told = str(offline.value)
            if isinstance(offline.value, RequestRejected):
                told = told.removeprefix(f"{offline.value.field}: ")
            assert str(refused.value).split(": ", 1)[1] == told
