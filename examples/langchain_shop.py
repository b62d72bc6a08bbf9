"""LangChain on a tokenbus gateway: a streamed answer, and a call of a tool.

pip install langchain-openai
tokenbus serve smollm2-135m
python examples/langchain_shop.py
"""

from __future__ import annotations

import os
from typing import Literal

from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI

STOCK = {"lamp": 7, "tent": 0, "boots": 3}

model = ChatOpenAI(
    base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    model=os.environ.get("MODEL", "smollm2-135m"),
    max_tokens=96,
    temperature=0,
)


@tool
def stock(product: Literal["lamp", "tent", "boots"]) -> int:
    """How many of a product are left."""
    return STOCK[product]


def main() -> None:
    """Stream a text, then let the model call the tool and answer."""
    for piece in model.stream("Two sentences about rain:"):
        print(piece.text if isinstance(piece.text, str) else piece.text(), end="", flush=True)
    print()
    history = [HumanMessage("Are there lamps left?")]
    calling = model.bind_tools([stock], tool_choice="required", parallel_tool_calls=False)
    asked = calling.invoke(history)
    history.append(asked)
    for call in asked.tool_calls:
        print(call["name"], call["args"], flush=True)
        history.append(ToolMessage(str(stock.invoke(call["args"])), tool_call_id=call["id"]))
    print(model.bind_tools([stock], tool_choice="none").invoke(history).content)


if __name__ == "__main__":
    main()
