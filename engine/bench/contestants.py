"""A contestant of `tokenbus bench cpu`: one engine, in a process of its own.

`python -P -m tokenbus.engine.bench.contestants` reads one `ContestOrder` as JSON on its standard
input and prints a JSON object a line: the versions it runs and a remark if it has one, then
`{"case", "seconds", "token_ids"}` per case.
The clock covers generation alone: loading, packing and warming up are left out.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from tokenbus.engine.bench.llama_cpp_contestant import LlamaCpp
from tokenbus.engine.bench.order import Contestant, ContestOrder

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True)
class Package:
    """Where a contestant comes from: the module it imports and the distribution that has it."""

    module: str
    distribution: str


PACKAGES = {
    "transformers": Package("transformers", "transformers"),
    # Decodes batches faster than the default attention, and reads prompts half as fast.
    "transformers-eager": Package("transformers", "transformers"),
    "tokenbus": Package("tokenbus", "tokenbus"),
    "tokenbus-int8": Package("tokenbus", "tokenbus"),
    "tokenbus-int4": Package("tokenbus", "tokenbus"),
    "vllm": Package("vllm", "vllm"),
    "llama.cpp": Package("llama_cpp", "llama-cpp-python"),
}
# Tokens that a case starts with, off the clock.
_WARM_TOKENS = 4


class _Transformers(Contestant):
    """`generate` on a static batch, with the attention that transformers chooses or another."""

    def __init__(self, order: ContestOrder, attention: str | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(order.num_threads)
        factory: Any = AutoModelForCausalLM
        self._model = factory.from_pretrained(
            order.model,
            trust_remote_code=False,
            dtype=getattr(torch, order.dtype),
            attn_implementation=attention,
        ).eval()
        self._torch = torch

    def remark(self) -> str:
        return f"attention by {self._model.config._attn_implementation}"

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = self._torch.tensor(prompts)
        out = self._model.generate(
            ids,
            attention_mask=self._torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        made: list[list[int]] = out[:, ids.shape[1] :].tolist()
        return made


class _Tokenbus(Contestant):
    """The engine of this package, offline."""

    def __init__(self, order: ContestOrder, quantization: str | None = None) -> None:
        from tokenbus.engine.llm import LLM
        from tokenbus.engine.types import SamplingParams

        self._params = SamplingParams
        self._quantization = quantization
        self._llm = LLM(
            order.model, dtype=order.dtype, device="cpu", num_threads=order.num_threads,
            max_model_len=order.longest + 1, quantization=quantization,
        )  # fmt: skip

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = self._params(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, progress=False)
        return [list(output.token_ids) for output in outputs]

    def remark(self) -> str | None:
        return self._quantization and f"weights rounded to {self._quantization}"

    def reset(self) -> None:
        self._llm.reset_prefix_cache()


class _Vllm(Contestant):
    """vLLM's CPU build as installed, offline."""

    def __init__(self, order: ContestOrder) -> None:
        vllm: Any = import_module("vllm")

        self._vllm = vllm
        self._llm: Any = vllm.LLM(
            order.model,
            dtype=order.dtype,
            max_model_len=order.longest + 1,
            enable_prefix_caching=False,
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = self._vllm.SamplingParams(
            max_tokens=num_tokens, temperature=0.0, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


_CLASSES: dict[str, Callable[[ContestOrder], Contestant]] = {
    "transformers": _Transformers,
    "transformers-eager": partial(_Transformers, attention="eager"),
    "tokenbus": _Tokenbus,
    "tokenbus-int8": partial(_Tokenbus, quantization="int8"),
    "tokenbus-int4": partial(_Tokenbus, quantization="int4"),
    "vllm": _Vllm,
    "llama.cpp": LlamaCpp,
}


def main() -> None:
    """Run the order on standard input."""
    order = ContestOrder.from_json(sys.stdin.read())
    contestant = _CLASSES[order.contestant](order)
    names = dict.fromkeys((PACKAGES[order.contestant].distribution, "torch"))
    start = {"versions": {name: version(name) for name in names}, "remark": contestant.remark()}
    print(json.dumps(start), flush=True)
    for case in order.cases:
        # The first call at a batch size makes buffers and chooses kernels.
        contestant.generate(case.prompts(order.seed + 1), min(case.output_len, _WARM_TOKENS))
        contestant.reset()
        prompts = case.prompts(order.seed)
        started_at = time.perf_counter()
        token_ids = contestant.generate(prompts, case.output_len)
        seconds = time.perf_counter() - started_at
        contestant.reset()
        record = {"case": case.name, "seconds": seconds, "token_ids": token_ids}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
