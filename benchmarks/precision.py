"""How far bf16 answers lie from transformers: log-probabilities of the same tokens.

    python -P benchmarks/precision.py [--model DIR ...] [--tiny] [--temperature T] [--json FILE]

The engine samples in bf16 with log-probabilities on; transformers scores the same tokens, once in
bf16 and once in fp32 with the same weights. Printed are mean and largest absolute differences;
transformers' own distance between the two is the yardstick. On a GPU, rows that share a prefix are
run twice, with the prefix read once for all and read per row. `--tiny` adds random models whose
logits are not flat (`initializer_range` 0.3).
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, Qwen3Config

from tokenbus.engine.build import engine_for, load_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

NUM_ROWS = 24
NUM_TOKENS = 64
SHARED_TOKENS = 768

Prompt = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Distance:
    """Mean and largest absolute difference of log-probabilities over all sampled tokens."""

    model: str
    case: str
    ours_to_bf16: tuple[float, float]
    ours_to_fp32: tuple[float, float]
    bf16_to_fp32: tuple[float, float]


def sample(
    config: EngineConfig, prompts: list[Prompt], *, temperature: float, grouped: bool
) -> list[tuple[Prompt, list[float]]]:
    """Run the prompts; return their tokens and log-probabilities."""
    loaded = load_for(config)
    if loaded.backend.device.type == "cuda":
        # So few rows would be left apart by the gates, which count saved reads.
        attention: Any = loaded.backend.attention
        attention.min_saved_tokens = 0
        attention.pays = lambda rows, pages: grouped and rows > 1 and pages > 0
    engine = engine_for(loaded, config)
    params = {
        "max_tokens": NUM_TOKENS,
        "temperature": temperature,
        "ignore_eos": True,
        "logprobs": 0,
    }
    for idx, prompt in enumerate(prompts):
        engine.add(Request(idx, prompt, SamplingParams(seed=idx, **params)))
    tokens: list[list[int]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    while engine.has_work:
        for delta in engine.step().deltas:
            tokens[delta.request_id].extend(delta.token_ids)
            scores[delta.request_id].extend(score.logprob for score in delta.logprobs)
    engine.close()
    return [(tuple(ids), values) for ids, values in zip(tokens, scores, strict=True)]


@torch.inference_mode()
def score(model: Any, prompts: list[Prompt], outputs: list[Prompt]) -> torch.Tensor:
    """Return transformers' log-probabilities of the outputs, one row after the other."""
    scores = []
    for prompt, output in zip(prompts, outputs, strict=True):
        ids = torch.tensor([[*prompt, *output]], device=model.device)
        logits = model(ids).logits[0, len(prompt) - 1 : -1].float()
        chosen = torch.tensor(output, device=model.device).unsqueeze(1)
        scores.append(logits.log_softmax(-1).gather(1, chosen).squeeze(1).cpu())
    return torch.cat(scores)


def compare(path: str, name: str, temperature: float) -> list[Distance]:
    """Measure one model on prompts of mixed lengths and on prompts under one prefix."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto: Any = AutoModelForCausalLM
    twins = {
        dtype: auto.from_pretrained(path, dtype=torch.bfloat16).to(device, dtype).eval()
        for dtype in (torch.bfloat16, torch.float32)
    }
    ids = _source(path, twins[torch.float32].config.vocab_size)
    prefix = ids(SHARED_TOKENS)
    cases = {
        "mixed lengths": ([ids(25 * idx + 1) for idx in range(NUM_ROWS)], False),
        "shared prefix": ([(*prefix, *ids(20)) for _ in range(NUM_ROWS)], False),
    }
    if device == "cuda":
        cases["shared prefix, read once"] = (cases["shared prefix"][0], True)
    config = EngineConfig(
        path, dtype="bfloat16", max_num_seqs=NUM_ROWS, max_model_len=1024, num_pages=2000
    )
    found = []
    for case, (prompts, grouped) in cases.items():
        sampled = sample(config, prompts, temperature=temperature, grouped=grouped)
        outputs = [output for output, _ in sampled]
        ours = torch.tensor([value for _, values in sampled for value in values])
        narrow, exact = (
            score(twins[dtype], prompts, outputs) for dtype in (torch.bfloat16, torch.float32)
        )
        distance = Distance(
            name, case, _distance(ours, narrow), _distance(ours, exact), _distance(narrow, exact)
        )
        found.append(distance)
        print(
            f"{name:>16} {case:>26}: to transformers bf16 mean {distance.ours_to_bf16[0]:.4f}"
            f" max {distance.ours_to_bf16[1]:.3f}, to fp32 mean {distance.ours_to_fp32[0]:.4f}"
            f" max {distance.ours_to_fp32[1]:.3f}; transformers bf16 to fp32 mean"
            f" {distance.bf16_to_fp32[0]:.4f} max {distance.bf16_to_fp32[1]:.3f}",
            flush=True,
        )
    return found


def _source(path: str, vocab_size: int) -> Callable[[int], Prompt]:
    """Return what draws prompts: runs of this project's own prose, or ids if there is no tokenizer.

    A trained model is unsure of everything after noise, which no user sends.
    """
    source = random.Random(0)
    if not (Path(path) / "tokenizer.json").exists():
        return lambda count: tuple(source.randrange(vocab_size) for _ in range(count))
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    text = "\n".join(page.read_text() for page in pages)
    words: Any = AutoTokenizer.from_pretrained(path)(text)["input_ids"]

    def draw(count: int) -> Prompt:
        start = source.randrange(len(words) - count)
        return tuple(words[start : start + count])

    return draw


def _distance(left: torch.Tensor, right: torch.Tensor) -> tuple[float, float]:
    difference = (left - right).abs()
    return float(difference.mean()), float(difference.max())


def _tiny_models(folder: Path) -> list[tuple[str, str]]:
    """Write random models of two families whose logits are far from flat."""
    sizes = {
        "vocab_size": 1024,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "initializer_range": 0.3,
        "max_position_embeddings": 2048,
    }
    auto: Any = AutoModelForCausalLM
    found = []
    for kind in (LlamaConfig, Qwen3Config):
        torch.manual_seed(0)
        name = f"tiny {kind.model_type}"
        auto.from_config(kind(**sizes)).to(torch.bfloat16).save_pretrained(folder / name)
        found.append((str(folder / name), name))
    return found


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--tiny", action="store_true", help="random models as well")
    parser.add_argument(
        "--temperature", type=float, default=0.6, help="default: that of the speed benchmarks"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    found: list[Distance] = []
    with tempfile.TemporaryDirectory() as folder:
        models = [(path, Path(path).name) for path in args.model]
        if args.tiny:
            models += _tiny_models(Path(folder))
        for path, name in models:
            found += compare(path, name, args.temperature)
    if args.json is not None:
        args.json.write_text(json.dumps([asdict(item) for item in found], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
