"""OpenAI's Agents SDK on a tokenbus gateway: an agent with a tool, run to its end.

pip install openai-agents
tokenbus serve smollm2-135m
python examples/openai_agents_shop.py "Are there lamps left?"
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Literal

from agents import (
    Agent,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

STOCK = {"lamp": 7, "tent": 0, "boots": 3}

# Traces would go to OpenAI.
set_tracing_disabled(disabled=True)


@function_tool
def stock(product: Literal["lamp", "tent", "boots"]) -> int:
    """How many of a product are left."""
    print(f"stock({product!r})", flush=True)
    return STOCK[product]


async def main(question: str) -> None:
    """Run the agent; its first answer is a call, the next one what it likes."""
    client = AsyncOpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
        api_key=os.environ.get("OPENAI_API_KEY", "none"),
    )
    agent = Agent(
        name="Clerk",
        instructions="Answer from the stock.",
        model=OpenAIChatCompletionsModel(os.environ.get("MODEL", "smollm2-135m"), client),
        model_settings=ModelSettings(
            tool_choice="required", parallel_tool_calls=False, max_tokens=64
        ),
        tools=[stock],
        tool_use_behavior="stop_on_first_tool",
    )
    result = await Runner.run(agent, question, max_turns=4)
    print(result.final_output)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "Are there lamps left?"))
