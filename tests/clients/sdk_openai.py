"""OpenAI's own client against a gateway: `python sdk_openai.py STEP URL`; fails if let down."""
# mypy: ignore-errors
# What it imports is in the environment of `make clients` alone.

from __future__ import annotations

import asyncio
import json
import sys
import time

import httpx
import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

MODEL = "smollm2-135m"
RAIN = [{"role": "user", "content": "Two sentences about rain:"}]
GREEDY = {"model": MODEL, "temperature": 0, "max_tokens": 24}
PATIENCE_S = 300
STOCK = {
    "type": "function",
    "function": {
        "name": "stock",
        "parameters": {
            "type": "object",
            "properties": {"product": {"enum": ["lamp", "tent"]}, "count": {"type": "integer"}},
            "required": ["product"],
            "additionalProperties": False,
        },
    },
}


class Product(BaseModel):
    """What a parsed answer is."""

    name: str
    price: int


def plain(client: OpenAI) -> None:
    """An answer at once, its counts, several choices, logprobs, and a stop string."""
    whole = client.chat.completions.create(messages=RAIN, **GREEDY)
    assert whole.object == "chat.completion"
    assert whole.choices[0].message.role == "assistant"
    assert whole.choices[0].finish_reason in ("stop", "length")
    usage = whole.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.completion_tokens <= 24
    several = client.chat.completions.create(
        model=MODEL, messages=RAIN, n=2, seed=7, logprobs=True, top_logprobs=2, max_tokens=8
    )
    assert [choice.index for choice in several.choices] == [0, 1]
    for choice in several.choices:
        assert len(choice.logprobs.content) > 0
        assert all(len(token.top_logprobs) == 2 for token in choice.logprobs.content)
    text = client.completions.create(model=MODEL, prompt=["Rain is", "Sand is"], max_tokens=4)
    assert [choice.index for choice in text.choices] == [0, 1]
    assert MODEL in [model.id for model in client.models.list()]


def stream(client: OpenAI) -> None:
    """Joined deltas are the unstreamed answer; the reason and the usage come once."""
    whole = client.chat.completions.create(messages=RAIN, **GREEDY)
    chunks = list(
        client.chat.completions.create(
            messages=RAIN, **GREEDY, stream=True, stream_options={"include_usage": True}
        )
    )
    told = [choice for chunk in chunks for choice in chunk.choices]
    joined = "".join(choice.delta.content or "" for choice in told)
    assert joined == whole.choices[0].message.content
    reasons = [choice.finish_reason for choice in told if choice.finish_reason]
    assert reasons == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])
    assert len({(chunk.id, chunk.created) for chunk in chunks}) == 1


def tools(client: OpenAI) -> None:
    """Calls at once, grown by deltas, and their results in the next request."""
    asked = {"messages": RAIN, "tools": [STOCK], "tool_choice": "required", **GREEDY}
    asked |= {"max_tokens": 64, "parallel_tool_calls": False}
    message = client.chat.completions.create(**asked).choices[0].message
    [call, *_] = message.tool_calls
    assert call.function.name == "stock"
    assert json.loads(call.function.arguments)["product"] in ("lamp", "tent")
    with client.chat.completions.stream(**asked) as streamed:
        for _ in streamed:
            pass
        final = streamed.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "7"}
    after = client.chat.completions.create(
        messages=[*RAIN, message, result], tools=[STOCK], tool_choice="none", **GREEDY
    )
    assert not after.choices[0].message.tool_calls


def parse(client: OpenAI) -> None:
    """An answer of a schema is read as the model that it was given by."""
    parsed = client.chat.completions.parse(
        messages=[{"role": "user", "content": "A product as JSON:"}],
        response_format=Product,
        model=MODEL,
        max_tokens=96,
        temperature=0,
    )
    assert isinstance(parsed.choices[0].message.parsed, Product)


def errors(client: OpenAI) -> None:
    """Refusals are the client's own errors, with field and code."""
    long = [{"role": "user", "content": "x " * 9000}]
    for kind, given in (
        (openai.BadRequestError, {"messages": RAIN, "model": MODEL, "temperature": -1}),
        (openai.NotFoundError, {"messages": RAIN, "model": "no-such-model"}),
        (openai.BadRequestError, {"messages": long, "model": MODEL}),
    ):
        refused = None
        try:
            client.chat.completions.create(**given)
        except kind as error:
            refused = error
        assert refused is not None, f"{given} was answered"
        assert refused.code
        assert refused.body["message"]


async def _in_parallel(client: AsyncOpenAI) -> None:
    async def text() -> str:
        pieces = await client.chat.completions.create(messages=RAIN, **GREEDY, stream=True)
        return "".join([piece.choices[0].delta.content or "" async for piece in pieces])

    assert len(set(await asyncio.gather(*(text() for _ in range(4))))) == 1


def in_parallel(client: OpenAI) -> None:
    """Four streams of the asynchronous client at once."""

    async def run() -> None:
        async with AsyncOpenAI(base_url=str(client.base_url), api_key="none") as other:
            await _in_parallel(other)

    asyncio.run(run())


def responses(client: OpenAI) -> None:
    """A response at once, streamed, in the background, chained and deleted."""
    asked = {"model": MODEL, "input": "Two sentences about rain:", "max_output_tokens": 24}
    first = client.responses.create(**asked, temperature=0)
    assert first.status in ("completed", "incomplete")
    assert first.output_text
    streamed = list(client.responses.create(**asked, temperature=0, stream=True))
    assert streamed[0].type == "response.created"
    assert streamed[-1].type in ("response.completed", "response.incomplete")
    assert streamed[-1].response.output_text == first.output_text
    likely = client.responses.create(
        **asked, temperature=0, include=["message.output_text.logprobs"], top_logprobs=2
    )
    tokens = likely.output[0].content[0].logprobs
    assert "".join(token.token for token in tokens) == likely.output_text
    assert {len(token.top_logprobs) for token in tokens} == {2}
    later = client.responses.create(**asked, background=True)
    until = time.monotonic() + PATIENCE_S
    while later.status in ("queued", "in_progress"):
        assert time.monotonic() < until
        time.sleep(0.1)
        later = client.responses.retrieve(later.id)
    assert later.output_text
    chained = client.responses.create(
        model=MODEL, input="And snow?", previous_response_id=first.id, max_output_tokens=16
    )
    assert chained.previous_response_id == first.id
    assert chained.usage.input_tokens > first.usage.input_tokens
    client.responses.delete(first.id)
    try:
        client.responses.retrieve(first.id)
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("a deleted response is there still")


def batches(client: OpenAI) -> None:
    """A file of requests becomes a file of answers, an id each."""
    lines = [
        {
            "custom_id": f"line-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": MODEL, "messages": RAIN, "max_tokens": 4},
        }
        for number in range(5)
    ]
    body = "\n".join(map(json.dumps, lines)).encode()
    file = client.files.create(file=("lines.jsonl", body), purpose="batch")
    assert client.files.content(file.id).read() == body
    assert file.id in [each.id for each in client.files.list()]
    batch = client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h"
    )
    until = time.monotonic() + PATIENCE_S
    while batch.status not in ("completed", "failed", "expired", "cancelled"):
        assert time.monotonic() < until, batch
        time.sleep(0.2)
        batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    answers = client.files.content(batch.output_file_id).text.splitlines()
    assert {json.loads(line)["custom_id"] for line in answers} == {
        line["custom_id"] for line in lines
    }
    client.files.delete(file.id)


def open_webui(client: OpenAI) -> None:
    """Bodies in the forms that Open WebUI sends: a talk, a title, and the list of models."""
    base = str(client.base_url)
    with httpx.Client(base_url=base, timeout=PATIENCE_S) as web:
        assert MODEL in [model["id"] for model in web.get("models").json()["data"]]
        talk = {
            "stream": True,
            "model": MODEL,
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "rain"}]},
            ],
            "stream_options": {"include_usage": True},
            "max_tokens": 8,
            "temperature": 0.7,
            "top_p": 0.9,
            "frequency_penalty": 0,
            "presence_penalty": 0,
            "seed": 3,
            "stop": ["###"],
        }
        with web.stream("POST", "chat/completions", json=talk) as told:
            assert told.status_code == 200
            frames = [line for line in told.iter_lines() if line.startswith("data: ")]
        assert frames[-1] == "data: [DONE]"
        title = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "### Task:\nA title for: rain"}],
            "stream": False,
            "max_completion_tokens": 8,
        }
        assert web.post("chat/completions", json=title).json()["choices"][0]["message"]["content"]


STEPS = {
    step.__name__: step
    for step in (
        plain, stream, tools, parse, errors, in_parallel, responses, batches, open_webui,
    )
}  # fmt: skip

if __name__ == "__main__":
    STEPS[sys.argv[1]](OpenAI(base_url=sys.argv[2], api_key="none", timeout=PATIENCE_S))
