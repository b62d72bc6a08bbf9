"""The call formats of the families, by name: each typed from what its template shows the model.

It is one noun, the table: a family is found, and compared with its neighbours, in one place.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from tokenbus.engine.chat.call_format import CallFormat, CallSyntax, ParameterTags

if TYPE_CHECKING:
    from collections.abc import Mapping

_JSON_CALL, _JSON_ARGUMENTS = CallSyntax.JSON_CALL, CallSyntax.JSON_ARGUMENTS
_PARAMETERS, _PYTHON = CallSyntax.PARAMETERS, CallSyntax.PYTHON


def _braced(name: str, opening: str, closing: str, quote: str) -> CallFormat:
    """Return the format of families that write an object with bare keys behind the name."""
    return CallFormat(
        name,
        CallSyntax.BRACED,
        call_open=opening,
        name_prefix="call:",
        quote=quote,
        call_close=closing,
    )


def _tagged_json(name: str, opening: str, closing: str, key: str = "arguments") -> CallFormat:
    """Return the format of families that write each call as an object between marks."""
    return CallFormat(
        name,
        _JSON_CALL,
        call_open=opening,
        call_close=closing,
        separator="\n",
        arguments_key=key,
    )


def _json_list(name: str, opening: str, closing: str = "", key: str = "arguments") -> CallFormat:
    """Return the format of families that write one JSON list of calls behind a mark."""
    return CallFormat(
        name,
        _JSON_CALL,
        section_open=opening,
        section_close=closing,
        is_list=True,
        separator=", ",
        arguments_key=key,
    )


def _dsml(name: str, section: str) -> CallFormat:
    """Return the format of DeepSeek's own markup, whose tags tell strings from other values."""
    return CallFormat(
        name,
        _PARAMETERS,
        section_open=f"<｜DSML｜{section}>\n",
        call_open='<｜DSML｜invoke name="',
        name_close='">\n',
        parameters=ParameterTags(
            open='<｜DSML｜parameter name="',
            name_close='" string="false">',
            string_name_close='" string="true">',
            untyped_name_close='">',
            close="</｜DSML｜parameter>\n",
        ),
        call_close="</｜DSML｜invoke>\n",
        section_close=f"</｜DSML｜{section}>",
    )


_ALL = (
    _tagged_json("hermes", "<tool_call>\n", "\n</tool_call>"),
    _tagged_json("longcat", "<longcat_tool_call>\n", "\n</longcat_tool_call>"),
    _tagged_json("internlm", "<|action_start|><|plugin|>\n", "<|action_end|>", "parameters"),
    CallFormat(
        "internlm-2",
        _JSON_CALL,
        call_open="<|action_start|><|plugin|>\n",
        call_close="<|action_end|>",
        separator="\n",
        also_read=(
            _tagged_json(
                "internlm-2-parameters",
                "<|action_start|><|plugin|>\n",
                "<|action_end|>",
                "parameters",
            ),
        ),
    ),
    CallFormat("granite-20b", _JSON_CALL, call_open="<function_call> "),
    _json_list("jamba", "<tool_calls>", "</tool_calls>"),
    _json_list("functools", "functools"),
    CallFormat(
        "minimax-m1",
        _JSON_CALL,
        section_open="<tool_calls>\n",
        section_close="\n</tool_calls>",
        separator="\n",
    ),
    CallFormat(
        "olmo-3",
        _PYTHON,
        section_open="<function_calls>\n",
        section_close="\n</function_calls>",
        separator="\n",
    ),
    CallFormat(
        "apertus",
        _JSON_CALL,
        section_open="<|tools_prefix|>",
        section_close="<|tools_suffix|>",
        is_list=True,
        separator=", ",
        name_key="",
    ),
    CallFormat(
        "smollm3",
        _JSON_CALL,
        call_open="<tool_call>",
        call_close="</tool_call>",
        separator="\n",
        also_read=(
            CallFormat(
                "smollm3-code",
                _PYTHON,
                section_open="<code>\n",
                section_close="\n</code>",
                separator="\n",
            ),
        ),
    ),
    CallFormat(
        "qwen3-coder",
        _PARAMETERS,
        call_open="<tool_call>\n<function=",
        name_close=">\n",
        parameters=ParameterTags("<parameter=", ">\n", "\n</parameter>\n"),
        call_close="</function>\n</tool_call>",
        separator="\n",
        also_read=(
            CallFormat(
                "qwen3-coder-untagged",
                _PARAMETERS,
                call_open="<function=",
                name_close=">\n",
                parameters=ParameterTags("<parameter=", ">\n", "\n</parameter>\n"),
                call_close="</function>\n</tool_call>",
            ),
        ),
    ),
    CallFormat(
        "llama-3",
        _JSON_CALL,
        arguments_key="parameters",
        separator="; ",
        is_parallel=False,
        has_text_before=False,
        also_read=(
            CallFormat(
                "llama-3-tagged",
                _JSON_CALL,
                section_open="<|python_tag|>",
                separator="; ",
                arguments_key="parameters",
            ),
            CallFormat("llama-3-builtin", _PYTHON, section_open="<|python_tag|>"),
        ),
    ),
    CallFormat(
        "llama-4",
        _PYTHON,
        is_list=True,
        separator=", ",
        has_text_before=False,
        also_read=(
            CallFormat(
                "llama-4-tagged",
                _PYTHON,
                section_open="<|python_start|>",
                section_close="<|python_end|>",
                is_list=True,
                separator=", ",
            ),
            CallFormat(
                "llama-4-tagged-json",
                _JSON_CALL,
                section_open="<|python_start|>",
                section_close="<|python_end|>",
                separator="; ",
                arguments_key="parameters",
            ),
            CallFormat("llama-4-bare-json", _JSON_CALL, arguments_key="parameters"),
        ),
    ),
    CallFormat(
        "llama-4-json",
        _JSON_CALL,
        section_open="<|python_start|><|python_end|>",
        arguments_key="parameters",
        has_text_before=False,
        also_read=(
            CallFormat(
                "llama-4-json-tagged",
                _JSON_CALL,
                section_open="<|python_start|>",
                section_close="<|python_end|>",
                separator="; ",
                arguments_key="parameters",
            ),
            CallFormat("llama-4-json-bare", _JSON_CALL, separator="; ", arguments_key="parameters"),
        ),
    ),
    _json_list("mistral", "[TOOL_CALLS]"),
    CallFormat(
        "mistral-args",
        _JSON_ARGUMENTS,
        call_open="[TOOL_CALLS]",
        id_open="[CALL_ID]",
        name_close="[ARGS]",
    ),
    CallFormat(
        "mistral-call-id",
        _JSON_ARGUMENTS,
        call_open="[TOOL_CALLS]",
        id_open="[CALL_ID]",
        writes_id=True,
        name_close="[ARGS]",
    ),
    CallFormat(
        "deepseek-v3",
        _JSON_ARGUMENTS,
        section_open="<｜tool▁calls▁begin｜>",
        call_open="<｜tool▁call▁begin｜>function<｜tool▁sep｜>",
        name_close="\n```json\n",
        call_close="\n```<｜tool▁call▁end｜>",
        separator="\n",
        section_close="<｜tool▁calls▁end｜>",
    ),
    CallFormat(
        "deepseek-v3.1",
        _JSON_ARGUMENTS,
        section_open="<｜tool▁calls▁begin｜>",
        call_open="<｜tool▁call▁begin｜>",
        name_close="<｜tool▁sep｜>",
        call_close="<｜tool▁call▁end｜>",
        section_close="<｜tool▁calls▁end｜>",
    ),
    _dsml("deepseek-v3.2", "function_calls"),
    _dsml("deepseek-v4", "tool_calls"),
    CallFormat(
        "harmony",
        _JSON_ARGUMENTS,
        call_open="<|channel|>commentary to=",
        name_prefix="functions.",
        name_close=" <|constrain|>json<|message|>",
        call_close="<|call|>",
        separator="<|start|>assistant",
        is_parallel=False,
    ),
    CallFormat(
        "granite-3",
        _JSON_CALL,
        section_open="<|tool_call|>",
        is_list=True,
        separator=", ",
        also_read=(_json_list("granite-3-tagged", "<tool_call>"),),
    ),
    CallFormat(
        "command-r",
        _JSON_CALL,
        section_open="Action: ```json\n",
        section_close="```",
        is_list=True,
        separator=",\n",
        name_key="tool_name",
        arguments_key="parameters",
    ),
    CallFormat(
        "command-a",
        _JSON_CALL,
        section_open="<|START_ACTION|>",
        section_close="<|END_ACTION|>",
        is_list=True,
        separator=",\n",
        index_key="tool_call_id",
        name_key="tool_name",
        arguments_key="parameters",
    ),
    CallFormat(
        "phi-4-mini",
        _JSON_CALL,
        section_open="<|tool_call|>",
        section_close="<|/tool_call|>",
        is_list=True,
        separator=", ",
        also_read=(_json_list("phi-4-mini-functools", "functools"),),
    ),
    CallFormat(
        "kimi-k2",
        _JSON_ARGUMENTS,
        section_open="<|tool_calls_section_begin|>",
        call_open="<|tool_call_begin|>",
        name_prefix="functions.",
        index_open=":",
        keeps_id=True,
        name_close="<|tool_call_argument_begin|>",
        call_close="<|tool_call_end|>",
        section_close="<|tool_calls_section_end|>",
    ),
    CallFormat(
        "glm-4",
        _PARAMETERS,
        call_open="<tool_call>",
        name_close="\n",
        parameters=ParameterTags("<arg_key>", "</arg_key>\n<arg_value>", "</arg_value>\n"),
        call_close="</tool_call>",
        separator="\n",
    ),
    CallFormat(
        "minimax-m2",
        _PARAMETERS,
        section_open="<minimax:tool_call>\n",
        call_open='<invoke name="',
        name_close='">\n',
        parameters=ParameterTags('<parameter name="', '">', "</parameter>\n"),
        call_close="</invoke>\n",
        section_close="</minimax:tool_call>",
    ),
    CallFormat(
        "seed-oss",
        _PARAMETERS,
        call_open="<seed:tool_call>\n<function=",
        name_close=">\n",
        parameters=ParameterTags("<parameter=", ">", "</parameter>\n"),
        call_close="</function>\n</seed:tool_call>",
        separator="\n",
    ),
    CallFormat(
        "functionary-v3.1",
        _JSON_ARGUMENTS,
        call_open="<function=",
        name_close=">",
        call_close="</function>",
    ),
    CallFormat(
        "functionary-v3.2",
        _JSON_ARGUMENTS,
        call_open=">>>",
        name_close="\n",
        content_name="all",
        opens_in_prompt=True,
    ),
    CallFormat(
        "gemma-3",
        _PYTHON,
        section_open="```tool_code\n",
        section_close="\n```",
        separator="\n",
        also_read=(
            CallFormat(
                "gemma-3-json",
                _JSON_CALL,
                section_open="```tool_code\n",
                section_close="\n```",
                separator="\n",
            ),
        ),
    ),
    CallFormat(
        "xlam",
        _JSON_CALL,
        is_list=True,
        separator=", ",
        has_text_before=False,
        also_read=(
            _json_list("xlam-object", '{"tool_calls": ', "}"),
            _json_list("xlam-fenced", "```json\n", "\n```"),
            _json_list("xlam-tagged", "<tool_call>", "</tool_call>"),
            _json_list("xlam-marked", "[TOOL_CALLS]"),
        ),
    ),
    _json_list("nemotron-v2", "<TOOLCALL>", "</TOOLCALL>"),
    _braced("gemma-4", "<|tool_call>", "<tool_call|>", '<|"|>'),
    _braced("functiongemma", "<start_function_call>", "<end_function_call>", "<escape>"),
    CallFormat(
        "gigachat-3.1",
        _JSON_CALL,
        call_open="<|function_call|>",
        is_parallel=False,
    ),
    CallFormat(
        "hunyuan-3",
        _PARAMETERS,
        section_open="<tool_calls:opensource>\n",
        call_open="<tool_call:opensource>",
        name_close="<tool_sep:opensource>\n",
        parameters=ParameterTags(
            "<arg_key:opensource>",
            "</arg_key:opensource>\n<arg_value:opensource>",
            "</arg_value:opensource>\n",
        ),
        call_close="</tool_call:opensource>\n",
        section_close="</tool_calls:opensource>",
    ),
    CallFormat(
        "minicpm-4",
        _PYTHON,
        comma=",",
        section_open="<|tool_call_start|>\n```python\n",
        section_close="\n```\n<|tool_call_end|>",
        separator="\n",
    ),
    CallFormat(
        "minicpm-5",
        _PARAMETERS,
        call_open='<function name="',
        name_close='">',
        parameters=ParameterTags(
            '<param name="', '">', "</param>", raw_open="<![CDATA[", raw_close="]]>"
        ),
        call_close="</function>",
        separator="\n",
    ),
    CallFormat(
        "step-3",
        _PARAMETERS,
        section_open="<｜tool_calls_begin｜>\n",
        call_open='<｜tool_call_begin｜>function<｜tool_sep｜><steptml:invoke name="',
        name_close='">\n',
        parameters=ParameterTags('<steptml:parameter name="', '">', "</steptml:parameter>\n"),
        call_close="</steptml:invoke><｜tool_call_end｜>\n",
        section_close="<｜tool_calls_end｜>",
    ),
    CallFormat(
        "lfm2",
        _PYTHON,
        section_open="<|tool_call_start|>",
        section_close="<|tool_call_end|>",
        is_list=True,
        separator=", ",
        also_read=(_json_list("lfm2-json", "<|tool_call_start|>", "<|tool_call_end|>"),),
    ),
)
CALL_FORMATS: Mapping[str, CallFormat] = MappingProxyType({each.name: each for each in _ALL})
