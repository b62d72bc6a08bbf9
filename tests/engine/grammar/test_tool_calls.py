"""Tool calls: constrained to the given tools, read back as written."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
import torch
from family_tokenizers import family_tokenizer

from tokenbus.engine.chat.chat_format import format_named
from tokenbus.engine.chat.message_reader import MessageReader
from tokenbus.engine.errors import GrammarRejected, RequestRejected
from tokenbus.engine.grammar.calls.added_tokens import AddedTokens
from tokenbus.engine.grammar.tool_calls import ToolCalling, ToolChoice
from tokenbus.engine.grammar.tools import FunctionTool
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.text.detokenizer import IncrementalDetokenizer
from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.chat.written_message import WrittenMessage
    from tokenbus.engine.grammar.grammar import GrammarCompiler
    from tokenbus.engine.types import GrammarSpec

WEATHER = {
    "type": "object",
    "properties": {
        "city": {"$ref": "#/$defs/city"},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
    "$defs": {"city": {"type": "string", "pattern": "^[A-Z][a-z]{1,6}$"}},
}
TOOLS = [FunctionTool("get_weather", WEATHER, "The forecast"), FunctionTool("now", {})]

FAMILIES = {"hermes": "hermes", "mistral": "mistral", "llama3": "llama-3"}
WRITTEN = {
    "hermes": [
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n'
        "</tool_call>",
        '\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
    ],
    "mistral": [
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}',
        ', {"name": "now", "arguments": {}}]',
    ],
    "llama3": [
        '{"name": "get_weather", "parameters": {"city": "Oslo", "days": 3}}',
    ],
}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    """Name each way of writing calls."""
    return str(request.param)


def calling(tokenizer: PreTrainedTokenizerFast, family: str) -> ToolCalling:
    """Return the tools for a model of a family."""
    return ToolCalling(TOOLS, format_named(FAMILIES[family]), AddedTokens(tokenizer))


def read(family: str, text: str) -> WrittenMessage:
    """Return the message that an answer is read as."""
    tools = {tool.name: tool.parameters for tool in TOOLS}
    reader = MessageReader(
        format_named(FAMILIES[family]), tools, starts_in_reasoning=False, call_id=str
    )
    reader.push(text)
    reader.finish()
    return reader.message


def accepts(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, spec: GrammarSpec, text: str
) -> bool:
    """Return True if the constraint allows exactly this output."""
    ids = tokenizer.encode(text, add_special_tokens=False)
    try:
        return compiler.compile(spec).matcher(ids).is_accepting
    except GrammarRejected:
        return False


def test_required_calls_are_calls_and_nothing_else(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """`required` refuses text, unknown tools and arguments that miss the schema."""
    tools = calling(tokenizer, family)
    spec = tools.grammar(ToolChoice.REQUIRED)
    written = "".join(WRITTEN[family])
    assert accepts(compiler, tokenizer, spec, written)
    for wrong in (
        "Hello",
        written.replace("get_weather", "get_time"),
        written.replace("Oslo", "oslo"),
        written.replace("3}", "30}"),
        written.replace('"days"', '"hours"'),
    ):
        assert not accepts(compiler, tokenizer, spec, wrong)


def test_auto_allows_text_and_calls_but_no_broken_call(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """Free text passes, calls pass, and what begins as a call has to be one."""
    spec = calling(tokenizer, family).grammar()
    written = "".join(WRITTEN[family])
    assert accepts(compiler, tokenizer, spec, "It is sunny < today. {x}")
    assert accepts(compiler, tokenizer, spec, written)
    assert not accepts(compiler, tokenizer, spec, written.replace("Oslo", "oslo"))
    assert not accepts(compiler, tokenizer, spec, written[:-8])


def test_text_may_stand_before_tagged_calls(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast
) -> None:
    """With a marker the model may speak first; the text is handed back apart from the calls."""
    tools = calling(tokenizer, "hermes")
    output = "Let me look.\n" + WRITTEN["hermes"][0]
    assert accepts(compiler, tokenizer, tools.grammar(), output)
    parsed = read("hermes", output)
    assert parsed.content == "Let me look."
    assert [call.name for call in parsed.calls] == ["get_weather"]


def test_named_choice_and_single_calls_narrow_the_grammar(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """A named tool excludes the others; without `parallel` there is one call."""
    tools = calling(tokenizer, family)
    first, both = WRITTEN[family][0], "".join(WRITTEN[family])
    only = first + ("]" if family == "mistral" else "")
    if family == "llama3":
        both = f"{first}; {first}"
    assert accepts(compiler, tokenizer, tools.grammar("get_weather"), only)
    assert not accepts(compiler, tokenizer, tools.grammar("now"), only)
    assert not accepts(compiler, tokenizer, tools.grammar("get_weather"), both)
    assert accepts(compiler, tokenizer, tools.grammar("required", parallel=False), only)
    assert not accepts(compiler, tokenizer, tools.grammar("required", parallel=False), both)


@pytest.mark.parametrize("seed", range(6))
def test_random_output_is_calls_with_valid_arguments(
    compiler: GrammarCompiler, tokenizer: PreTrainedTokenizerFast, family: str, seed: int
) -> None:
    """Noise for logits ends in calls whose arguments validate against the tool's schema."""
    tools = calling(tokenizer, family)
    matcher = compiler.compile(tools.grammar(ToolChoice.REQUIRED)).matcher()
    vocab_size = len(tokenizer) + 13
    state = SamplingState(1, vocab_size, "cpu", (0,))
    state.set_row(0, SamplingParams(seed=seed), 0, [1])
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    while len(ids) < 600:
        sampled = state.sample(
            torch.randn(1, vocab_size, generator=generator),
            torch.tensor([0]),
            torch.tensor([len(ids)]),
            bitmask=matcher.mask().unsqueeze(0),
        )
        token_id = int(sampled.token_ids)
        if token_id == 0:
            break
        matcher.accept(token_id)
        ids.append(token_id)
    shown = AddedTokens(tokenizer).ids_in(tools.format.texts)
    parsed = read(family, "".join(IncrementalDetokenizer(tokenizer, shown_ids=shown).push(ids)))
    assert parsed.complete_calls
    schemas: dict[str, Any] = {"get_weather": WEATHER, "now": {"maxProperties": 0}}
    for call in parsed.complete_calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])


SCHEMA_AT = r"^tools\.0\.function\.parameters: "


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ([], "^tools: at least one"),
        ([FunctionTool("two words", {})], r"^tools\.0\.function\.name: 'two words'"),
        ([FunctionTool("now", {}), FunctionTool("now", {})], r"^tools\.1\.function\.name: .*twice"),
        ([FunctionTool("now", {"type": "array"})], f"{SCHEMA_AT}must be of type object"),
        (
            [FunctionTool("now", {"properties": {"a": {"minimun": 1}}})],
            f"{SCHEMA_AT}JSON schema keyword 'minimun' at #/properties/a: ",
        ),
        (
            [FunctionTool("now", {"required": ["a"], "properties": {"a": False}})],
            f"{SCHEMA_AT}JSON schema at #: nothing can satisfy it",
        ),
    ],
)
def test_tools_that_cannot_be_enforced_are_refused(
    tokenizer: PreTrainedTokenizerFast, tools: list[FunctionTool], reason: str
) -> None:
    """A bad tool is refused by the path of what is wrong in it, with the reason."""
    with pytest.raises(RequestRejected, match=reason) as refused:
        ToolCalling(tools, format_named("hermes"), AddedTokens(tokenizer))
    assert refused.value.field.startswith("tools")


def test_unknown_tool_choice_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    """A choice that names no tool is an error of the request."""
    with pytest.raises(RequestRejected, match="tool_choice"):
        calling(tokenizer, "hermes").grammar("never")


def test_instructions_name_every_tool_and_the_marks(
    tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """A template without tools can be helped out with a text that shows tools and format."""
    tools = calling(tokenizer, family)
    text = tools.instructions()
    assert all(tool.name in text for tool in TOOLS)
    written = tools.format.calls
    assert written is not None
    assert all(mark.strip() in text for mark in (written.section_open, written.call_open))
    assert written.arguments_key in text


def test_tools_that_would_take_long_are_refused_before_the_work() -> None:
    """Their bytes, their steps and what is written of them are bounded for a request as a whole."""
    chosen, tokens = format_named("qwen3-coder"), AddedTokens(family_tokenizer("qwen3-coder"))
    patterns = {"oneOf": [{"type": "string", "pattern": f"^a{idx}[a-z]*$"} for idx in range(30)]}
    formats = {f"p{idx}": {"type": "string", "format": "uri"} for idx in range(1000)}
    refused: dict[str, list[dict[str, Any]]] = {
        "the source has": [{"description": "x" * 300_000}],
        "too many steps": [{"properties": {"x": patterns}}] * 8,
        "written out": [{"properties": formats}],
    }
    for reason, schemas in refused.items():
        tools = [FunctionTool(f"f{idx}", schema) for idx, schema in enumerate(schemas)]
        with pytest.raises(GrammarRejected, match=reason):
            ToolCalling(tools, chosen, tokens)
    [alone] = refused["too many steps"][:1]
    assert ToolCalling([FunctionTool("f", alone)], chosen, tokens).grammar().source
