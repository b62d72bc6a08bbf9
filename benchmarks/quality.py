"""What numbers of fewer bits cost a model: the same text under each format, computed in float32.

    python -P benchmarks/quality.py [--model NAME] [--windows N] [--window TOKENS] [--last TOKENS]
        [--only NAME] [--device NAME] [--kernels] [--json FILE]

The text is the project's own documentation, in windows of 512 tokens or as many as asked for, of
which the last ones alone may count: what stands after thousands of others. Weights of the layers
are rounded as a worker rounds them while loading, or as checkpoints in blocks have them; the head
stays. Keys and values are rounded per token and head, as pages of FP8 hold them, and rows where a
GPU multiplies in FP8: those of FP8 weights but a lone one, and many at a time of four bits, whose
weights are rounded to FP8 as well then. Everything is computed in float32, so that what is printed
is the cost of the format and of no kernel: mean and largest difference of the text's
log-probabilities from those of the plain weights, the divergence of the distributions in nats, how
often the first choice is the same, and perplexity. The line of bfloat16 is the plain model computed
in bfloat16: what a format's cost may be compared with.

With `--kernels` the engine itself scores the windows on a GPU, in bfloat16, rounding weights and
pages: how far its own log-probabilities are from those of the plain weights, and how many times as
far as those of the same format in float32.

The demo model's file holds 4 bits in groups of 32: groups of 32 find these again, others do not.
"""

from __future__ import annotations

import argparse
import json
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from tokenbus.engine.llm import LLM
from tokenbus.engine.models.linear_weight import Fp8BlockWeight
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.engine.weights.loader import find_folder
from tokenbus.engine.weights.rounding import (
    round_to_fp8,
    round_to_int4,
    round_to_int4_groups,
    round_to_int8,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor

_BLOCK = 128
_PAGES = "keys and values in fp8"
_DOCS = Path(__file__).resolve().parent.parent / "docs"


def in_blocks(weight: Tensor) -> Fp8BlockWeight:
    """Round a weight [out, in] to float8, the largest of each 128 x 128 to 448."""
    num_outputs, num_inputs = weight.shape
    padding = (0, -num_inputs % _BLOCK, 0, -num_outputs % _BLOCK)
    blocks = torch.nn.functional.pad(weight.float(), padding)
    blocks = blocks.view(blocks.shape[0] // _BLOCK, _BLOCK, -1, _BLOCK)
    scales = blocks.abs().amax((1, 3)).clamp(min=1e-12) / 448
    values = (blocks / scales[:, None, :, None]).flatten(2).flatten(0, 1)
    values = values[:num_outputs, :num_inputs].to(torch.float8_e4m3fn)
    return Fp8BlockWeight(values, scales, _BLOCK, _BLOCK, weight.dtype)


_WEIGHTS: dict[str, Callable[[Tensor], Any]] = {
    "fp8 per output": round_to_fp8,
    "fp8 in blocks of 128 x 128": in_blocks,
    "int8 per output": round_to_int8,
    "int4, scale and zero point per 128": round_to_int4_groups,
    "int4, scale and low per 32": round_to_int4,
}


def rounded_rows(x: Tensor) -> Tensor:
    """Round the last axis to e4m3 with a scale of its own, and back."""
    scale = x.abs().amax(-1, keepdim=True).clamp(min=1e-20) / 448
    return (x / scale).to(torch.float8_e4m3fn).to(x.dtype) * scale


def rounded_groups(x: Tensor) -> Tensor:
    """Round each 128 of the last axis to e4m3 with a scale of their own, and back."""
    return torch.cat([rounded_rows(part) for part in x.split(_BLOCK, -1)], -1)


# What many rows are multiplied by on a GPU, and how they are rounded themselves.
_MULTIPLIED_IN_FP8: dict[str, tuple[Callable[[Tensor], Any], Callable[[Tensor], Tensor]]] = {
    "fp8 per output, rows too": (round_to_fp8, rounded_rows),
    "fp8 in blocks, rows by groups of 128": (in_blocks, rounded_groups),
    "int4 per 128, then both in fp8": (
        lambda weight: round_to_fp8(round_to_int4_groups(weight).dequantised().bfloat16()),
        rounded_rows,
    ),
}


# Settings of an engine, and what it computes in float32.
_BY_KERNELS: dict[str, dict[str, str]] = {
    "bfloat16": {},
    "fp8 per output, rows too": {"quantization": "fp8"},
    "int4, scale and zero point per 128": {"quantization": "int4"},
    _PAGES: {"kv_cache_dtype": "fp8"},
}


@contextmanager
def rounded_pages(model: Any) -> Iterator[None]:
    """Let keys, rotated, and values be what pages of FP8 hold."""
    rotate = modeling_llama.apply_rotary_pos_emb
    width = model.config.head_dim

    def rotate_and_round(*args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        q, k = rotate(*args, **options)
        return q, rounded_rows(k)

    def round_values(_module: Any, _inputs: Any, found: Tensor) -> Tensor:
        return rounded_rows(found.unflatten(-1, (-1, width))).flatten(-2)

    hooks = [
        layer.self_attn.v_proj.register_forward_hook(round_values) for layer in model.model.layers
    ]
    modeling_llama.apply_rotary_pos_emb = rotate_and_round
    try:
        yield
    finally:
        modeling_llama.apply_rotary_pos_emb = rotate
        for hook in hooks:
            hook.remove()


@contextmanager
def rounded_inputs(model: Any, round_rows: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let the layers' linears round the rows that they multiply."""
    hooks = [
        module.register_forward_pre_hook(lambda _module, inputs: (round_rows(inputs[0]),))
        for module in model.model.layers.modules()
        if isinstance(module, torch.nn.Linear)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.inference_mode()
def distributions(model: Any, windows: Tensor, last: int) -> Tensor:
    """windows: [N, L] token ids -> log-probabilities of the last tokens, [N, last, V] float32."""
    rows = [model(window[None, :-1], logits_to_keep=last).logits[0] for window in windows]
    return torch.stack([row.float().log_softmax(-1) for row in rows])


def compared(found: Tensor, plain: Tensor, windows: Tensor) -> dict[str, float]:
    """Return what a format costs, by the distributions of both over the last tokens."""
    targets = windows[:, -plain.shape[1] :, None]
    ours, exact = (item.gather(2, targets).squeeze(2).double() for item in (found, plain))
    difference = (ours - exact).abs()
    divergence = (plain.exp() * (plain - found)).sum(2, dtype=torch.float64)
    same = found.argmax(2) == plain.argmax(2)
    return {
        "mean difference": float(difference.mean()),
        "largest": float(difference.max()),
        "divergence": float(divergence.mean()),
        "same first choice": float(same.double().mean()),
        "perplexity": float((-ours.mean()).exp()),
    }


def scored_by_engine(folder: Path, windows: Tensor, **settings: Any) -> Tensor:
    """windows: [N, L] token ids -> what the engine gives all but the first of them, [N, L - 1]."""
    # Pages of 64 tokens, twice what the windows take: the plain model keeps its place.
    num_pages = windows.numel() // 32 + 2 * len(windows)
    settings |= {"max_model_len": 2 * windows.shape[1], "num_pages": num_pages}
    engine = LLM(folder, cuda_graphs=False, **settings).engine
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    for idx, window in enumerate(windows.tolist()):
        engine.add(Request(idx, window, params))
    scores = {}
    while engine.has_work:
        for delta in engine.step().deltas:
            if delta.prompt_logprobs is not None:
                scores[delta.request_id] = [item.logprob for item in delta.prompt_logprobs[1:]]
    engine.close()
    return torch.tensor([scores[idx] for idx in range(len(windows))])


@torch.inference_mode()
def weights_rounded(model: Any, round_to: Callable[[Tensor], Any]) -> dict[str, Tensor]:
    """Round the layers' linears in place; return what they were."""
    kept: dict[str, Tensor] = {}
    for name, module in model.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            kept[name] = module.weight.data
            module.weight.data = round_to(module.weight.data.bfloat16()).dequantised()
    return kept


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--windows", type=int, default=6)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--last", type=int)
    parser.add_argument("--only")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def main() -> None:
    """Print the table."""
    options = _options()
    folder = find_folder(options.model)
    text = "\n".join(path.read_text() for path in sorted(_DOCS.glob("*.md")))
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids[0]
    windows = ids[: options.windows * options.window].view(-1, options.window).to(options.device)
    last = options.last or options.window - 1
    auto: Any = AutoModelForCausalLM
    model = auto.from_pretrained(folder, dtype=torch.bfloat16).to(options.device)
    half = distributions(model, windows, last)
    model = model.float()
    plain = distributions(model, windows, last)
    table: dict[str, dict[str, float]] = {}

    def note(name: str, found: Tensor) -> None:
        row = table[name] = compared(found, plain, windows)
        cells = "".join(f"{key} {value:9.4f}  " for key, value in row.items())
        print(f"{name:36}{cells}", flush=True)

    print(f"{options.model}, {last * len(windows)} tokens of documentation")
    note("plain", plain)
    note("bfloat16", half)
    del half
    formats = {name: (round_to, None) for name, round_to in _WEIGHTS.items()} | _MULTIPLIED_IN_FP8
    for name, (round_to, round_rows) in formats.items():
        if options.only not in {None, name}:
            continue
        kept = weights_rounded(model, round_to)
        with rounded_inputs(model, round_rows) if round_rows else nullcontext():
            note(name, distributions(model, windows, last))
        for module, values in kept.items():
            model.model.layers.get_submodule(module).weight.data = values
    if options.only in {None, _PAGES}:
        with rounded_pages(model):
            note(_PAGES, distributions(model, windows, last))
    own = plain.gather(2, windows[:, -last:, None]).squeeze(2).cpu()
    kinds = {key: _BY_KERNELS[key] for key in _BY_KERNELS if options.kernels and key in table}
    for name, settings in kinds.items():
        found = scored_by_engine(folder, windows, **settings)[:, -last:]
        mean = float((found - own).abs().double().mean())
        times = mean / table[name]["mean difference"]
        table[f"{name}, by kernels"] = {"mean difference": mean, "times": times}
        print(f"{name}, by kernels: mean difference {mean:.4f}, {times:.3f} times", flush=True)
    if options.json:
        options.json.write_text(json.dumps(table, indent=1))


if __name__ == "__main__":
    main()
