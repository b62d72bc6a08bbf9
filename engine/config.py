"""Settings of the engine: each declared once, with its bounds and its option.

A field of `EngineConfig` carries its bounds, and its option of the command line with the help. The
worker's setting of that name, its `TOKENBUS_*` variable and `tokenbus worker --help` come from
there. This module imports nothing heavy, because the command line reads it at every start.

It is one noun, past three hundred lines: all that an engine can be told, in the order of its help.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from tokenbus.engine.errors import RequestRejected

_MEMORY_SHARES = (0.05, 0.98)
# The share of a GPU's memory up to which weights of four bits are kept in FP8 as well.
KEPT_IN_FP8_SHARE = 0.125


@dataclass(frozen=True, slots=True)
class EngineSetting:
    """What is declared of one field.

    `kind` is the type of a value, `default` None where the engine chooses by device and model.
    `choices` are the only values of a text, None where any will do. `option` is empty for
    what only a variable sets; `metavar` stands for the value of one that has no choices. `unset`
    says in the help what holds unless it is set, if the default alone does not.
    """

    name: str
    kind: type
    default: Any
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] | None = None
    option: str = ""
    metavar: str | None = None
    help: str = ""
    unset: str = ""

    def option_arguments(self) -> dict[str, Any]:
        """Return what `argparse` is told of the option; one that is not given is None."""
        told: dict[str, Any] = {"dest": self.name, "help": f"{self.help} (default: {self._unset})"}
        if self.choices is not None:
            return told | {"choices": self.choices}
        if self.kind is not str:
            told["type"] = self.kind
        return told | {"metavar": self.metavar}

    @property
    def _unset(self) -> str:
        if self.unset:
            return self.unset
        return self.default if isinstance(self.default, str) else f"{self.default:g}"


def _declared(
    bounds: tuple[float, float] | None = None,
    *,
    choices: tuple[str, ...] | None = None,
    **told: str,
) -> dict[str, Any]:
    """Return the metadata of a field: arguments of its `EngineSetting`."""
    return {"bounds": bounds, "choices": choices, **told}


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Settings of one engine; None means "chosen at start-up from the device and the model".

    The order is that of the options.
    """

    # A local folder or GGUF file, hub id or alias of the model store.
    model: str
    dtype: str = field(
        default="auto",
        metadata=_declared(
            choices=("auto", "float32", "bfloat16", "float16"),
            option="--dtype",
            help="number format of weights and pages",
            unset="auto, what the model was saved in",
        ),
    )
    # int8 rounds weights to a byte with a scale per output, int4 those of the layers to 4 bits with
    # a scale and an offset per 32 inputs, on a GPU a scale and whole zero point per 128, fp8 those
    # of the layers to float8, a scale per output.
    quantization: str | None = field(
        default=None,
        metadata=_declared(
            choices=("fp8", "int8", "int4"),
            option="--quantization",
            help="round weights while loading: fp8 and int4; int8 on a CPU, for few jobs at a time",
            unset="off",
        ),
    )
    # Pages of fp8 have a scale per token and head and hold twice as many tokens.
    kv_cache_dtype: str = field(
        default="auto",
        metadata=_declared(
            choices=("auto", "bf16", "fp8"),
            option="--kv-cache-dtype",
            help="number format of KV pages; fp8 is for GPUs",
            unset="auto, that of the weights",
        ),
    )
    device: str = field(
        default="auto",
        metadata=_declared(
            option="--device",
            metavar="NAME",
            help="what computes: auto, cpu or cuda[:index]",
            unset="auto, a GPU where one works, else the CPU",
        ),
    )
    # Ranks, each with a slice of every layer: a process and a GPU each, or a share of the cores.
    tensor_parallel: int = field(
        default=1,
        metadata=_declared(
            (1, 32),
            option="--tensor-parallel",
            metavar="N",
            help="GPUs that run the model together, a slice of each layer on each",
        ),
    )
    num_threads: int | None = field(
        default=None,
        metadata=_declared(
            (1, 1024),
            option="--threads",
            metavar="N",
            help="compute threads on a CPU, of each rank",
            unset="one per core, shared by all ranks",
        ),
    )
    page_size: int | None = field(
        default=None,
        metadata=_declared(
            (1, 1024),
            option="--page-size",
            metavar="TOKENS",
            help="tokens per KV page",
            unset="16 on a CPU, 64 on a GPU",
        ),
    )
    # The scratch page counts.
    num_pages: int | None = field(
        default=None,
        metadata=_declared(
            (2, 2**31 - 1),
            option="--num-pages",
            metavar="N",
            help="pages of the KV cache, one of them scratch",
            unset="from free memory",
        ),
    )
    # Free memory of a CPU is not the engine's alone.
    kv_cache_gib: float = field(
        default=2.0,
        metadata=_declared(
            (0.001, 4096),
            option="--kv-cache-gib",
            metavar="GIB",
            help="memory for KV pages on a CPU in GiB",
        ),
    )
    memory_fraction: float = field(
        default=0.9,
        metadata=_declared(
            _MEMORY_SHARES,
            option="--memory-fraction",
            metavar="SHARE",
            help="share of a GPU's memory for weights and pages,"
            f" {_MEMORY_SHARES[0]} to {_MEMORY_SHARES[1]}",
        ),
    )
    # Rows.
    max_num_seqs: int = field(
        default=256,
        metadata=_declared(
            (1, 4096),
            option="--max-num-seqs",
            metavar="N",
            help="sequences that run at once, at most",
        ),
    )
    max_model_len: int | None = field(
        default=None,
        metadata=_declared(
            (2, 2**24),
            option="--max-model-len",
            metavar="TOKENS",
            help="longest prompt plus output in tokens",
            unset="the model's own limit",
        ),
    )
    generation_config: str = field(
        default="auto",
        metadata=_declared(
            choices=("auto", "none"),
            option="--generation-config",
            help="sampling defaults of the checkpoint's generation_config.json where a request"
            " leaves a field out; none leaves them aside",
        ),
    )
    # A file: its template is used in place of the model's own.
    chat_template: str | None = field(
        default=None,
        metadata=_declared(
            option="--chat-template",
            metavar="FILE",
            help="chat template in place of the model's own",
            unset="that of the model",
        ),
    )
    # Names of docs/chat-formats.md.
    tool_format: str | None = field(
        default=None,
        metadata=_declared(
            option="--tool-format",
            metavar="NAME",
            help="how the model writes tool calls, as hermes or none; a wrong name lists all",
            unset="by the chat template",
        ),
    )
    reasoning_format: str | None = field(
        default=None,
        metadata=_declared(
            option="--reasoning-format",
            metavar="NAME",
            help="how the model marks its reasoning, as think or none; a wrong name lists all",
            unset="by the chat template",
        ),
    )
    # auto lets a step bring several tokens of a sequence where that pays; the text is the same.
    speculation: str = field(
        default="off",
        metadata=_declared(
            choices=("auto", "off"),
            option="--speculation",
            help="draft tokens from texts and grammars and verify several in a step; auto drafts"
            " as many as pay",
        ),
    )
    # The longest step while somebody is streaming.
    itl_target_ms: float | None = field(
        default=None,
        metadata=_declared(
            (0.1, 60_000),
            option="--itl-target-ms",
            metavar="MS",
            help="longest gap in milliseconds that a prefill may put between streamed tokens",
            unset="none",
        ),
    )
    max_batch_tokens: int = field(
        default=8192,
        metadata=_declared((1, 2**20), help="prompt tokens per step when nobody is streaming"),
    )
    prefix_cache: bool = field(
        default=True,
        metadata=_declared(help="share pages between sequences with the same prefix and salt"),
    )
    prefix_grouping: bool = field(
        default=True,
        metadata=_declared(help="let sequences with the same pages read these once for all"),
    )
    speculation_group_bytes: int = field(
        default=4 * 2**20,
        metadata=_declared(
            (2**16, 2**30),
            help="what the answers of one tenant or cache group may take that drafts come from",
        ),
    )
    random_weights: bool = field(
        default=False,
        metadata=_declared(help="ignore weight files and draw weights, for benchmarks"),
    )
    cuda_graphs: bool = field(
        default=True,
        metadata=_declared(help="capture steps on a GPU: decode, and few prompt tokens"),
    )
    grammar_source_bytes: int = field(
        default=262_144,
        metadata=_declared((1, 2**20), help="bytes of the source of one grammar"),
    )
    grammar_states: int = field(
        default=50_000, metadata=_declared((100, 10**7), help="states of one grammar's lexer")
    )
    grammar_items: int = field(
        default=20_000,
        metadata=_declared((100, 10**7), help="items of one grammar's parser per token"),
    )
    grammar_compile_s: float = field(
        default=2.0,
        metadata=_declared((0.01, 600), help="processor time for compiling a grammar"),
    )
    grammar_token_ms: float = field(
        default=100.0,
        metadata=_declared((1, 60_000), help="processor time of one grammar for one token"),
    )

    def __post_init__(self) -> None:
        """Refuse values outside their bounds by the field's name."""
        for item in fields(self):
            bounds, choices = item.metadata.get("bounds"), item.metadata.get("choices")
            value = getattr(self, item.name)
            if value is None:
                continue
            if choices is not None and value not in choices:
                raise RequestRejected(item.name, f"{value} is not {' or '.join(choices)}")
            if bounds is not None and not bounds[0] <= value <= bounds[1]:
                raise RequestRejected(item.name, f"{value} is outside {bounds[0]}…{bounds[1]}")


def engine_settings() -> dict[str, EngineSetting]:
    """Return what is declared of every field but the model, which has no default."""
    hints = get_type_hints(EngineConfig)
    return {
        item.name: EngineSetting(
            item.name, _kind(hints[item.name]), item.default, **dict(item.metadata)
        )
        for item in fields(EngineConfig)
        if item.name != "model"
    }


def _kind(hint: Any) -> type:
    """Return the type of a value that may be None."""
    kinds = [kind for kind in get_args(hint) or (hint,) if kind is not type(None)]
    only: type = kinds[0]
    return only
