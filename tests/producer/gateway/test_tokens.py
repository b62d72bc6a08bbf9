"""Tokens over HTTP: a worker of the pool answers what its tokenizer makes of a text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from gateways.doors import door

if TYPE_CHECKING:
    from gateways.doors import Door

    from tokenbus.producer.server.embedded import EmbeddedServer


@pytest.mark.asyncio(loop_scope="module")
async def test_text_becomes_tokens_and_text_again(null_door: Door) -> None:
    """Texts and conversations are tokenised as the model gets them, and come back."""
    told = (await null_door.post("/tokenize", {"prompt": "hi é", "return_token_strs": True})).json
    assert (told["count"], told["tokens"]) == (5, list("hi é".encode()))
    assert told["token_strs"][:2] == ["h", "i"]
    assert told["max_model_len"] == 8192
    back = await null_door.post("/detokenize", {"tokens": told["tokens"]})
    assert back.json == {"prompt": "hi é"}
    chat = await null_door.post("/tokenize", {"messages": [{"role": "user", "content": "hi"}]})
    text = (await null_door.post("/detokenize", {"tokens": chat.json["tokens"]})).json["prompt"]
    assert text == "user: hi\nassistant:"
    answered = await null_door.post(
        "/v1/chat/completions",
        {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
    )
    assert answered.json["usage"]["prompt_tokens"] == chat.json["count"]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": 7}, "prompt"),
        ("/tokenize", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [1, 99_999]}, "tokens"),
        ("/detokenize", {"tokens": [1.5]}, "tokens"),
        ("/detokenize", {"tokens": "ab"}, "tokens"),
        ("/tokenize", {"prompt": "hi", "model": 7}, "model"),
    ],
)
async def test_question_that_makes_no_sense_is_refused(
    null_door: Door, path: str, body: Any, param: str | None
) -> None:
    """What is wrong is named, and the worker answers the next one."""
    told = await null_door.post(path, body)
    assert told.status == 400, told.text
    if param is not None:
        assert told.error["param"] == param


async def test_garbage_among_the_questions_costs_nobody_else(
    private_server: EmbeddedServer, pool: str
) -> None:
    """What lies in the list that is no question is dropped; without a worker the door says so."""
    async with door(private_server.url, pool) as running:
        assert running.gateway is not None
        client = await running.gateway.models.client(pool)
        name = client.scripts.keys.of("questions")
        redis: Any = client.scripts.redis
        old = {"kind": "texts", "ids": [1], "reply": "r" * 32, "until_ms": 1}
        await redis.rpush(name, "x", "[]", "{}", json.dumps(old))
        assert await client.scripts.questions.take() is None
        assert await client.scripts.questions.ask({"kind": "texts", "ids": [1]}, 0.2) is None
        assert await client.scripts.questions.take() is None
        assert await redis.exists(name) == 0
