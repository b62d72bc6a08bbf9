"""The real engine behind the queue: a tiny model, token for token like transformers."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from workers.null_workers import follow, worker

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.producer.client.async_client import AsyncClient

NUM_TOKENS = 48
PROMPTS = ["good morning", "where is my parcel?", "I want to return a pair of shoes", "x"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """Save a tiny random Llama with a tokenizer, drawn so that its output varies."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.4,
        eos_token_id=None,
        bos_token_id=None,
    )
    made: Any = LlamaForCausalLM(config)
    made.requires_grad_(False).eval()
    folder = tmp_path_factory.mktemp("tiny-llama")
    made.save_pretrained(folder)
    build_null_tokenizer().save_pretrained(folder)
    return folder, made


def _reference(made: Any, prompt: str) -> list[int]:
    ids = build_null_tokenizer().encode(prompt)
    output = made.generate(
        torch.tensor([ids]), max_new_tokens=NUM_TOKENS, do_sample=False, pad_token_id=0
    )
    tokens: list[int] = output[0, len(ids) :].tolist()
    return tokens


async def test_greedy_output_equals_transformers_also_after_the_engine_died(
    client: AsyncClient, redis_url: str, pool: str, model: tuple[Path, Any]
) -> None:
    """Batched, and resumed from the log after SIGKILL of the engine, each job matches generate."""
    folder, made = model
    wanted = [_reference(made, prompt) for prompt in PROMPTS]
    assert all(len(set(tokens)) >= 10 for tokens in wanted)
    settings = {
        "engine": "paged",
        "model": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "num_pages": 64,
        "num_threads": 1,
    }
    async with worker(pool, redis_url, **settings) as running:
        jobs = [
            await client.submit(prompt, max_tokens=NUM_TOKENS, temperature=0.0)
            for prompt in PROMPTS
        ]
        killed = False

        def kill_once(story: Any) -> None:
            nonlocal killed
            if story.last >= 5 and not killed and running.engine_pid is not None:
                killed = True
                os.kill(running.engine_pid, signal.SIGKILL)

        stories = await asyncio.gather(*(follow(client, job.job_id, kill_once) for job in jobs))
        assert [story.ids[0] for story in stories] == wanted
        assert killed
        for story, prompt in zip(stories, PROMPTS, strict=True):
            assert story.text == build_null_tokenizer().decode(story.ids[0]), prompt
