"""Chat templates written for tests, each in the form of models or of nobody."""

from __future__ import annotations


def template_of(
    calls: str,
    *,
    tools: str = "{{ tools | tojson }}",
    head: str = "<|im_start|>assistant\n",
    call_head: str | None = None,
    end: str = "<|im_end|>\n",
    call_end: str | None = None,
    begin: str | None = None,
    plain_head: str | None = None,
) -> str:
    """Return a template.

    Args:
        calls: Jinja that writes the calls of the message `m`; `each` goes through them.
        tools: Jinja that shows the tools in a system turn; empty for none.
        head, end: around a turn of the assistant.
        call_head, call_end: the same of one with calls, if it differs.
        begin: with what a prompt ends; `head` if it is None.
        plain_head: before an answer of words in a history; `head` if it is None.
    """
    shown = f"{{% if tools %}}<|im_start|>system\n{tools}<|im_end|>\n{{% endif %}}" if tools else ""
    words = "{{ m.content or '' }}"
    return (
        shown
        + "{% for m in messages %}{% if m.role == 'assistant' and m.tool_calls %}"
        + f"{head if call_head is None else call_head}{words}{calls}"
        + f"{end if call_end is None else call_end}{{% elif m.role == 'assistant' %}}"
        + f"{head if plain_head is None else plain_head}{words}{end}{{% else %}}"
        + "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
        + f"{{% if add_generation_prompt %}}{head if begin is None else begin}{{% endif %}}"
    )


def each(call: str, between: str = "") -> str:
    """Return Jinja that writes one call `f` after the other."""
    last = f"{{% if not loop.last %}}{between}{{% endif %}}" if between else ""
    return f"{{% for c in m.tool_calls %}}{{% set f = c.function %}}{call}{last}{{% endfor %}}"


_NAME, _ARGUMENTS = "{{ f.name }}", "{{ f.arguments | tojson }}"
_JSON = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
_PAIRS = "{% for k, v in f.arguments.items() %}{{ k }}={{ v }}, {% endfor %}"
_XML = "{% for k, v in f.arguments.items() %}<{{ k }}>{{ v }}</{{ k }}>{% endfor %}"

# Ways of writing calls that no format reads, or that one reads and a model would not write: tools
# are refused with all of them.
UNKNOWN = {
    "other keys": template_of(
        each(
            '<tool_call>\n{"tool": "{{ f.name }}", "args": {{ f.arguments | tojson }}}</tool_call>'
        )
    ),
    "name as the key": template_of(
        each('<tool_call>\n{"{{ f.name }}": {{ f.arguments | tojson }}}\n</tool_call>')
    ),
    "as the API has them": template_of("<tool_call>\n{{ m.tool_calls | tojson }}\n</tool_call>"),
    "the API's list alone": template_of("{{ m.tool_calls | tojson }}"),
    "name and JSON alone": template_of(each(f"{_NAME}\n{_ARGUMENTS}")),
    "name and JSON in the tag": template_of(each(f"<tool_call>{_NAME}\n{_ARGUMENTS}</tool_call>")),
    "Python in the tag": template_of(
        each(
            "<tool_call>{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}={{ v | tojson }}"
            "{% if not loop.last %}, {% endif %}{% endfor %})</tool_call>"
        )
    ),
    "a function of the code": template_of(
        each(
            "{{ f.name }}\n```python\ntool_call({% for k, v in f.arguments.items() %}"
            "{{ k }}={{ v | tojson }}{% if not loop.last %}, {% endif %}{% endfor %})\n```"
        )
    ),
    "a turn of its own kind": template_of(each(_JSON), call_head="<|im_start|>function_call\n"),
    "a mark of its own kind": template_of(
        each(_JSON), head="<|assistant|>", call_head="<|assistant_call|>"
    ),
    "words before": template_of(each(f"I call a function: {_JSON}")),
    "words behind": template_of(each(f"{_JSON} -- and wait.")),
    "another tag": template_of(each(f"<function_call>{_JSON}</function_call>")),
    "another mark": template_of(each(f"<|call|>{_JSON}<|end_of_call|>")),
    "a mark behind alone": template_of(each(f"{_JSON}<|end_of_call|>")),
    "a fence around one": template_of(each(f"```json\n{_JSON}\n```")),
    "another fence": template_of(each(f"```tool_call\n{_JSON}\n```")),
    "YAML": template_of(
        each(
            "<tool_call>\nname: {{ f.name }}\narguments:\n{% for k, v in f.arguments.items() %}"
            "  {{ k }}: {{ v }}\n{% endfor %}</tool_call>"
        )
    ),
    "tags by name": template_of(each(f"<{_NAME}>{_XML}</{_NAME}>")),
    "tags by name in the tag": template_of(
        each(f"<tool_call><name>{_NAME}</name>{_XML}</tool_call>")
    ),
    "attributes": template_of(
        each(
            '<call name="{{ f.name }}"{% for k, v in f.arguments.items() %} {{ k }}="{{ v }}"'
            "{% endfor %}/>"
        )
    ),
    "lines of arguments": template_of(
        each(
            "[TOOL_CALLS]{{ f.name }}\n{% for k, v in f.arguments.items() %}{{ k }}\t{{ v }}\n"
            "{% endfor %}"
        )
    ),
    "brackets": template_of(
        each(
            "[[{{ f.name }}({% for k, v in f.arguments.items() %}{{ k }}: {{ v | tojson }}; "
            "{% endfor %})]]"
        )
    ),
    "ReAct": template_of(
        each("Thought: I call.\nAction: {{ f.name }}\nAction Input: {{ f.arguments | tojson }}")
    ),
    "the other way round": template_of(
        each("<tool_call>\n{{ f.arguments | tojson }}\n{{ f.name }}\n</tool_call>")
    ),
    "shown nowhere": template_of(""),
    "tags of others around the marks of Python": template_of(
        "<function_calls>\n"
        + each(f'<invoke name="{_NAME}">\n{_XML}\n</invoke>\n')
        + "</function_calls>",
        tools='{{ tools | tojson }}\n<function_calls>\n<invoke name="x">\n...</invoke>\n'
        "</function_calls>",
    ),
    "a name before an object, shown": template_of(
        each(f"<tool_call>{_NAME}\n{_ARGUMENTS}</tool_call>"),
        tools='{{ tools | tojson }}\n<tool_call>name\n{the "arguments"}</tool_call>',
    ),
    "an object within tags of functions, shown": template_of(
        each(f"<function={_NAME}>\n{_XML}\n</function>"),
        tools="{{ tools | tojson }}\n<function=name>\n<key>value</key>\n</function>",
    ),
    "shown in another form": template_of(
        "", tools="{{ tools | tojson }}\nCall one as <tool_call>name: x, input: y</tool_call>"
    ),
    "shown as a list of calls": template_of(
        "", tools="{{ tools | tojson }}\nAnswer [TOOL_CALLS] and what you call"
    ),
}

# What the families themselves vary, with the format that each is read and written in.
KNOWN = {
    "no white space, as EXAONE 4": (
        template_of(each(f"<tool_call>{_JSON}</tool_call>")),
        "smollm3/none",
    ),
    "arguments as text": (
        template_of(
            each(
                '<tool_call>\n{"name": "{{ f.name }}", "arguments": {{ f.arguments }}}\n'
                "</tool_call>"
            )
        ),
        "hermes/none",
    ),
    "a thought that the prompt opens": (
        template_of(
            each(f"<tool_call>\n{_JSON}\n</tool_call>"), begin="<|im_start|>assistant\n<think>\n"
        ),
        "hermes/think-in-prompt",
    ),
    "a thought that the history closes": (
        template_of(
            each(f"</think><tool_call>\n{_JSON}\n</tool_call>"),
            begin="<|im_start|>assistant\n<think>",
        ),
        "hermes/think-in-prompt",
    ),
    "an end of its own": (
        template_of(each(f"<tool_call>\n{_JSON}\n</tool_call>"), call_end="<|eom_id|>\n"),
        "hermes/none",
    ),
    "ids in a list": (
        template_of(
            "[TOOL_CALLS] [{% for c in m.tool_calls %}{{ (c.function | tojson)[:-1] }}, "
            '"id": "{{ c.id }}"}{% if not loop.last %}, {% endif %}{% endfor %}]'
        ),
        "mistral/none",
    ),
    "another block of thoughts": (
        template_of(
            each(f"<tool_call>\n{_JSON}\n</tool_call>"), begin="<|im_start|>assistant\n<muse>\n"
        ),
        "hermes/none",
    ),
    "shown with its keys": (
        template_of(
            "",
            tools="{{ tools | tojson }}\n<tool_call>\n"
            '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>',
        ),
        "hermes/none",
    ),
    "tools by another name, as SmolLM3": (
        "{% if xml_tools %}<|im_start|>system\n{% for tool in xml_tools[:] %}{{ tool | string }}"
        '{% endfor %}\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
        "</tool_call><|im_end|>\n{% endif %}" + template_of("", tools=""),
        "hermes/none",
    ),
    "shown with tags": (
        template_of(
            "",
            tools="{{ tools | tojson }}\n<tool_call>name\n<arg_key>key</arg_key>\n"
            "<arg_value>value</arg_value>\n</tool_call>",
        ),
        "glm-4/none",
    ),
    "shown with its keys in single quotes, as Falcon-H1": (
        template_of(
            "",
            tools="{{ tools | tojson }}\n<tool_call>\n"
            "{'arguments': <args-dict>, 'name': <function-name>}\n</tool_call>",
        ),
        "hermes/none",
    ),
    "Python without quotes, shown as ToolACE shows it": (
        template_of(
            "[" + each(f"{_NAME}({_PAIRS})", ", ") + "]",
            tools="{{ tools | tojson }}\n[func_name1(params_name1=params_value1...), func_name2()]",
        ),
        "llama-4/none",
    ),
    "another form than the one that is shown, as Phi-4-mini of vLLM": (
        template_of(
            each(_JSON, ","),
            tools='{{ tools | tojson }}\nfunctools[{"name": [function name], "arguments": [JSON]}]',
        ),
        "functools/none",
    ),
    "an empty block of Python before, as Llama 4": (
        template_of(
            each(
                '{% if loop.first %}<|python_start|><|python_end|>{% endif %}{"name": "'
                '{{ f.name }}", "parameters": {{ f.arguments | tojson }}}'
            )
        ),
        "llama-4-json/none",
    ),
    "a mark before each call, as Granite 20B": (
        template_of(each(f"<function_call> {_JSON}")),
        "granite-20b/none",
    ),
    "arguments behind the marks of a plugin, as InternLM 2": (
        template_of(each(f"<|action_start|><|plugin|>\n{_JSON}<|action_end|>")),
        "internlm-2/none",
    ),
    "the id of a call in place of its name, as Kimi K2.5": (
        template_of(
            "<|tool_calls_section_begin|>"
            "{% for c in m.tool_calls %}<|tool_call_begin|>{{ c.id }}"
            "<|tool_call_argument_begin|>{{ c.function.arguments | tojson }}<|tool_call_end|>"
            "{% endfor %}<|tool_calls_section_end|>"
        ),
        "kimi-k2/none",
    ),
    "white space between the lines of a template": (
        template_of(
            each(f"<tool_call>\n{_JSON}\n</tool_call>"),
            head="  <|im_start|>  assistant\n",
            call_head="    <|im_start|>assistant\n",
            begin="<|im_start|> assistant\n",
        ),
        "hermes/none",
    ),
}
