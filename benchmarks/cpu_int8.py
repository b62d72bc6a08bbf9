"""What rounding weights to int8 costs on a CPU: log-probabilities of the demo's texts.

The texts are the demo's chats, each with the answer that the model gives greedily in float32. For
every dtype, the tokens of the answers are scored after the tokens before them.

    python -P benchmarks/cpu_int8.py
"""

from __future__ import annotations

import argparse
import math

import torch

from tokenbus.engine.llm import LLM
from tokenbus.engine.types import SamplingParams
from tokenbus.worker.demo.jobs import shop_jobs

_NUM_TOKENS = 96
_VARIANTS = (("float32", None), ("bfloat16", None), ("float32", "int8"), ("bfloat16", "int8"))


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


def main() -> None:
    """Print a line per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m", help="alias, folder or hub id")
    parser.add_argument("--jobs", type=int, default=24, help="texts of the demo (default: 24)")
    args = parser.parse_args()
    texts, starts = answers(args.model, args.jobs)
    exact: torch.Tensor | None = None
    for dtype, quantization in _VARIANTS:
        scores = score(args.model, dtype, quantization, texts, starts)
        exact = scores if exact is None else exact
        apart = (scores - exact).abs()
        print(
            f"{dtype:>8} {quantization or '':>4}  {len(scores)} tokens, perplexity"
            f" {math.exp(-scores.mean()):.4f}, mean difference of log-probabilities"
            f" {apart.mean():.4f}, largest {apart.max():.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
