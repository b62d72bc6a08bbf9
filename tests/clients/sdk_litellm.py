"""litellm against a gateway: `python sdk_litellm.py URL`; fails where it is let down."""
# mypy: ignore-errors
# What it imports is in the environment of `make clients` alone.

from __future__ import annotations

import asyncio
import sys

import litellm

ASKED = {
    "model": "openai/smollm2-135m",
    "api_base": sys.argv[1],
    "api_key": "none",
    "messages": [{"role": "user", "content": "Two sentences about rain:"}],
    "temperature": 0,
    "max_tokens": 24,
}


async def main() -> None:
    """An answer at once, streamed, and asynchronously: one text."""
    whole = litellm.completion(**ASKED)
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.completion_tokens <= 24
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in litellm.completion(**ASKED, stream=True)
    ]
    assert "".join(pieces) == text
    later = await litellm.acompletion(**ASKED)
    assert later.choices[0].message.content == text


if __name__ == "__main__":
    asyncio.run(main())
