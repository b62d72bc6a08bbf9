"""What rounding weights costs on a CPU: log-probabilities of the demo's texts.

The texts are the demo's chats, each with the answer that the model gives greedily in float32. For
every variant, the tokens of the answers are scored after the tokens before them.

    python -P benchmarks/cpu_quantized.py

The demo's model comes from a file of 4 bits in groups of 32, so that int4 finds almost all of its
weights again. `int4, other groups` tells what int4 costs where there is no such luck: the weights
of the layers are rounded in groups that lie across those of the file, then computed in float32.
"""

from __future__ import annotations

import argparse
import math
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from tokenbus.engine import LLM, SamplingParams
from tokenbus.engine.weights import model_store
from tokenbus.engine.weights.model_place import find_folder
from tokenbus.worker.demo.jobs import shop_jobs

_NUM_TOKENS = 96
_VARIANTS = (
    ("float32", None),
    ("bfloat16", None),
    ("float32", "int8"),
    ("bfloat16", "int8"),
    ("float32", "int4"),
    ("bfloat16", "int4"),
)
_GROUP = 32
_FILES = ("*.json", "*.jinja", "tokenizer*", "*.model", "merges.txt")


def answers(model: str, num_jobs: int) -> tuple[list[list[int]], list[int]]:
    """Return prompts with their greedy answers, and where each answer begins."""
    llm = LLM(model, dtype="float32", device="cpu")
    chats = [job.messages for job in shop_jobs(num_jobs)]
    params = SamplingParams(temperature=0.0, max_tokens=_NUM_TOKENS)
    outputs = [llm.chat(chat, params, progress=False)[0] for chat in chats]
    texts = [[*output.prompt_ids, *output.token_ids] for output in outputs]
    return texts, [len(output.prompt_ids) for output in outputs]


def score(
    model: str, dtype: str, quantization: str | None, texts: list[list[int]], starts: list[int]
) -> torch.Tensor:
    """Return the log-probability of every token of every answer, [tokens] float64."""
    llm = LLM(model, dtype=dtype, device="cpu", quantization=quantization)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    scores: list[float] = []
    for output, ids, start in zip(
        llm.generate(texts, params, progress=False), texts, starts, strict=True
    ):
        assert output.prompt_logprobs is not None
        scored = zip(ids[start:], output.prompt_logprobs[start:], strict=True)
        scores += [entry.logprob for _, entry in scored if entry is not None]
    return torch.tensor(scores, dtype=torch.float64)


def round_across(weight: torch.Tensor) -> torch.Tensor:
    """Round [out, in] to 16 steps per group of 32 inputs, the first group being half of one."""
    parts = []
    borders = tuple(range(_GROUP // 2, weight.shape[1], _GROUP))
    for part in weight.float().tensor_split(borders, 1):
        low = part.amin(1, keepdim=True).bfloat16().float()
        scale = ((part.amax(1, keepdim=True) - low) / 15).bfloat16().float().clamp(min=1e-30)
        parts.append(((part - low) / scale).round().clamp(0, 15) * scale + low)
    return torch.cat(parts, 1)


def write_rounded(model: str, folder: Path) -> None:
    """Write a checkpoint whose layers were rounded across the groups of its file."""
    source = find_folder(model)
    for pattern in _FILES:
        for path in source.glob(pattern):
            shutil.copy(path, folder)
    for path in source.glob("*.safetensors"):
        tensors = load_file(path)
        for name, tensor in tensors.items():
            is_linear = tensor.dim() == 2 and ".layers." in name
            tensors[name] = round_across(tensor) if is_linear else tensor.float()
        save_file(tensors, folder / path.name)


def report(label: str, scores: torch.Tensor, exact: torch.Tensor) -> None:
    """Print one variant's line."""
    apart = (scores - exact).abs()
    print(
        f"{label:>20}  {len(scores)} tokens, perplexity {math.exp(-scores.mean()):.4f}, mean"
        f" difference of log-probabilities {apart.mean():.4f}, largest {apart.max():.3f}",
        flush=True,
    )


def main() -> None:
    """Print a line per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder or hub id")
    parser.add_argument("--jobs", type=int, default=24, help="texts of the demo (default: 24)")
    args = parser.parse_args()
    if args.model in model_store.ALIASES:
        model_store.pull(args.model)
    texts, starts = answers(args.model, args.jobs)
    exact: torch.Tensor | None = None
    for dtype, quantization in _VARIANTS:
        scores = score(args.model, dtype, quantization, texts, starts)
        exact = scores if exact is None else exact
        report(f"{dtype} {quantization or ''}", scores, exact)
    assert exact is not None
    with tempfile.TemporaryDirectory() as folder:
        write_rounded(args.model, Path(folder))
        report("int4, other groups", score(folder, "float32", None, texts, starts), exact)


if __name__ == "__main__":
    main()
