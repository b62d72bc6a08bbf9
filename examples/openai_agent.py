"""An agent with tools on a toy shop: OpenAI's client, and a loop that carries its calls out.

    pip install openai
    tokenbus serve smollm2-135m
    python examples/openai_agent.py "Are there lamps left?"

The first answer has to be a call, so that a small model makes one too; what it calls and with which
arguments is the model's own, and always what the tools allow.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from openai import OpenAI

STOCK = {"lamp": 7, "tent": 0, "boots": 3}
TOOLS: list[Any] = [
    {
        "type": "function",
        "function": {
            "name": "stock",
            "description": "How many of a product are left",
            "parameters": {
                "type": "object",
                "properties": {"product": {"enum": sorted(STOCK)}},
                "required": ["product"],
                "additionalProperties": False,
            },
        },
    }
]
MAX_ROUNDS = 4

client = OpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
)
model = os.environ.get("MODEL", "smollm2-135m")


def stock(product: str) -> str:
    """Look a product up."""
    return json.dumps({"product": product, "left": STOCK[product]})


def main(question: str) -> None:
    """Answer a question, with as many rounds of calls as it takes."""
    history: list[Any] = [{"role": "user", "content": question}]
    for number in range(MAX_ROUNDS):
        choice = "required" if number == 0 else "auto" if number < MAX_ROUNDS - 1 else "none"
        completion = client.chat.completions.create(
            model=model, messages=history, tools=TOOLS, tool_choice=choice, max_tokens=64
        )
        message = completion.choices[0].message
        history.append(message)
        if not message.tool_calls:
            print(message.content)
            return
        for call in message.tool_calls:
            result = stock(**json.loads(call.function.arguments))
            print(f"{call.function.name}({call.function.arguments}) = {result}", flush=True)
            history.append({"role": "tool", "tool_call_id": call.id, "content": result})


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "Are there lamps left?")
