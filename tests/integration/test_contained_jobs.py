"""Jobs that break in the engine, behind the queue: each ends with its code, the others answer."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from models.tiny_model import TinyModel
from safetensors.torch import load_file, save_file
from workers.null_workers import follow, worker

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

NUM_TOKENS = 24
# The token whose embedding is not a number.
BROKEN = 5
# No token of the model, yet the end of a text by its own config.
OUTSIDE = 100_000
PROMPTS = ["good morning", "where is my parcel?"]


def choice(*texts: str) -> dict[str, Any]:
    """Spell a choice between texts as jobs do."""
    return {"kind": "choice", "source": json.dumps(texts)}


BAD: list[tuple[str, dict[str, Any]]] = [
    ("numerics", {"token_ids": [9, BROKEN, 7]}),
    ("numerics", {"prompt": "x", "logit_bias": {BROKEN: 100.0}, "temperature": 0.0}),
    ("numerics", {"token_ids": [BROKEN], "n": 2, "logprobs": 2, "prompt_logprobs": 1}),
    ("grammar", {"prompt": "x", "grammar": {"kind": "regex", "source": "("}}),
    ("grammar", {"prompt": "x", "n": 3, "grammar": {"kind": "lark", "source": "start: nothing"}}),
    # A choice between texts of which every token is a bad word, and one with a bad word amid it.
    ("grammar", {"prompt": "x", "grammar": choice("a", "b"), "bad_words": [[97], [98]]}),
    ("grammar", {"prompt": "x", "n": 2, "grammar": choice("aab"), "bad_words": [[97, 98]]}),
    ("invalid_request", {"token_ids": [9, 5000]}),
]


@pytest.fixture
def model(tmp_path: Path) -> TinyModel:
    """Save a tiny model of which one token's embedding is NaN and the end is no token."""
    made = TinyModel(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"eos_token_id": OUTSIDE}))
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.embed_tokens.weight"][BROKEN] = float("nan")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    return made


# One kind of server: what is shown is the engine's and the worker's.
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
async def test_jobs_that_break_end_alone_and_say_why(
    client: AsyncClient, redis_url: str, pool: str, model: TinyModel
) -> None:
    """By their code, with the engine still the same and the answers of the others as ever."""
    wanted = [model.greedy(prompt, NUM_TOKENS) for prompt in PROMPTS]
    assert not any(BROKEN in ids for ids in wanted)
    settings = {"engine": "paged", "model": str(model.folder), "dtype": "float32", "device": "cpu"}
    sizes = {"num_pages": 40, "num_threads": 1}
    async with worker(pool, redis_url, **settings, **sizes) as running:
        engine_pid = running.engine_pid
        for _ in range(2):
            good = [
                await client.submit(prompt, max_tokens=NUM_TOKENS, min_tokens=9, temperature=0.0)
                for prompt in PROMPTS
            ]
            bad = [await client.submit(**({"max_tokens": 9} | fields)) for _, fields in BAD]
            stories = await asyncio.gather(*(follow(client, job.job_id) for job in (*good, *bad)))
            assert [story.ids[0] for story in stories[: len(good)]] == wanted
            for story, (code, _) in zip(stories[len(good) :], BAD, strict=True):
                assert story.finish is not None
                assert story.finish.error is not None
                assert story.finish.error.code == code
        assert running.engine_pid == engine_pid
