"""LlamaIndex on a tokenbus gateway: a streamed answer, and a call of a tool.

pip install llama-index-llms-openai-like
tokenbus serve smollm2-135m
python examples/llamaindex_shop.py
"""

import os
from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

STOCK = {"lamp": 7, "tent": 0, "boots": 3}

llm = OpenAILike(
    api_base=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8000/v1"),
    api_key=os.environ.get("OPENAI_API_KEY", "none"),
    model=os.environ.get("MODEL", "smollm2-135m"),
    is_chat_model=True,
    is_function_calling_model=True,
    max_tokens=96,
    temperature=0,
)


def stock(product: Literal["lamp", "tent", "boots"]) -> int:
    """How many of a product are left."""
    return STOCK[product]


def main() -> None:
    """Stream a text, then let the model call the tool."""
    for piece in llm.stream_chat([ChatMessage(role="user", content="Two sentences about rain:")]):
        print(piece.delta or "", end="", flush=True)
    print()
    tools = [FunctionTool.from_defaults(fn=stock)]
    asked = llm.chat_with_tools(
        tools, user_msg="Are there lamps left?", tool_required=True, allow_parallel_tool_calls=False
    )
    for call in llm.get_tool_calls_from_response(asked):
        print(call.tool_name, call.tool_kwargs, tools[0].call(**call.tool_kwargs).content)


if __name__ == "__main__":
    main()
