"""One engine of `tokenbus bench cpu`, in a process of its own.

`python -P -m tokenbus.engine.bench_contestants` reads one `Order` as JSON on its standard input and
prints a JSON object a line: the versions it runs, then `{"case", "seconds", "token_ids"}` per case.
The clock covers generation alone: loading, packing and warming up are left out.
"""

from __future__ import annotations

import json
import random
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

# Distribution that has to be installed for a contestant to take part.
DISTRIBUTIONS = {
    "transformers": "transformers",
    "tokenbus": "tokenbus",
    "tokenbus-int8": "tokenbus",
    "tokenbus-int4": "tokenbus",
    "vllm": "vllm",
}
# Ids that prompts are drawn from: plain tokens in every vocabulary of some size.
_NUM_IDS = 10_000
# Long enough to tell transformers' attentions apart.
_TRIAL_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Case:
    """Sequences sent at once, greedy, each to its full length, without a shared prefix."""

    name: str
    num_seqs: int
    prompt_len: int
    output_len: int

    def prompts(self, seed: int) -> list[list[int]]:
        """Draw the prompts, the same for every contestant."""
        rng = random.Random(f"{self.name}/{seed}")
        return [[rng.randrange(_NUM_IDS) for _ in range(self.prompt_len)]
                for _ in range(self.num_seqs)]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Order:
    """What a contestant is to run, one case after the other."""

    contestant: str
    model: str
    dtype: str
    num_threads: int
    cases: tuple[Case, ...]
    seed: int

    def to_json(self) -> str:
        """Return the order as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Order:
        """Read an order."""
        fields = json.loads(text)
        return cls(**{**fields, "cases": tuple(Case(**case) for case in fields["cases"])})


class Contestant(ABC):
    """An engine with its model loaded."""

    @abstractmethod
    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        """Continue all prompts at once, greedily, by exactly `num_tokens` each."""

    def forget(self) -> None:  # noqa: B027 # most keep nothing
        """Drop what earlier cases left behind."""


class _Transformers(Contestant):
    """`generate` on a static batch, with the faster of its two attentions."""

    def __init__(self, order: Order) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(order.num_threads)
        factory: Any = AutoModelForCausalLM
        self._model = factory.from_pretrained(order.model, dtype=getattr(torch, order.dtype)).eval()
        self._torch = torch
        prompt = order.cases[0].prompts(order.seed)[:1]
        speed: dict[str, float] = {}
        for attention in ("sdpa", "eager") * 2:
            self._model.set_attn_implementation(attention)
            started_at = time.perf_counter()
            self.generate(prompt, _TRIAL_TOKENS)
            elapsed_s = time.perf_counter() - started_at
            speed[attention] = min(elapsed_s, speed.get(attention, elapsed_s))
        self._model.set_attn_implementation(min(speed, key=lambda name: speed[name]))

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

    def __init__(self, order: Order, quantization: str | None = None) -> None:
        from tokenbus.engine.llm import LLM
        from tokenbus.engine.types import SamplingParams

        longest = max(case.prompt_len + case.output_len for case in order.cases)
        self._params = SamplingParams
        self._llm = LLM(
            order.model, dtype=order.dtype, device="cpu", num_threads=order.num_threads,
            max_model_len=longest + 1, quantization=quantization,
        )  # fmt: skip

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = self._params(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
        outputs = self._llm.generate(prompts, params, progress=False)
        return [list(output.token_ids) for output in outputs]

    def forget(self) -> None:
        self._llm.reset_prefix_cache()


class _Vllm(Contestant):
    """vLLM's CPU build as installed, offline."""

    def __init__(self, order: Order) -> None:
        vllm: Any = import_module("vllm")

        longest = max(case.prompt_len + case.output_len for case in order.cases)
        self._vllm = vllm
        self._llm: Any = vllm.LLM(
            order.model, dtype=order.dtype, max_model_len=longest + 1, enable_prefix_caching=False
        )

    def generate(self, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        params = self._vllm.SamplingParams(
            max_tokens=num_tokens, temperature=0.0, ignore_eos=True, detokenize=False
        )
        inputs = [{"prompt_token_ids": ids} for ids in prompts]
        outputs = self._llm.generate(inputs, params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]


_CLASSES: dict[str, Callable[[Order], Contestant]] = {
    "transformers": _Transformers,
    "tokenbus": _Tokenbus,
    "tokenbus-int8": partial(_Tokenbus, quantization="int8"),
    "tokenbus-int4": partial(_Tokenbus, quantization="int4"),
    "vllm": _Vllm,
}


def main() -> None:
    """Run the order on standard input."""
    order = Order.from_json(sys.stdin.read())
    contestant = _CLASSES[order.contestant](order)
    names = dict.fromkeys((DISTRIBUTIONS[order.contestant], "torch"))
    print(json.dumps({"versions": {name: version(name) for name in names}}), flush=True)
    for case in order.cases:
        # The first call at a batch size makes buffers and chooses kernels.
        contestant.generate(case.prompts(order.seed + 1), min(case.output_len, 4))
        contestant.forget()
        prompts = case.prompts(order.seed)
        started_at = time.perf_counter()
        token_ids = contestant.generate(prompts, case.output_len)
        seconds = time.perf_counter() - started_at
        contestant.forget()
        record = {"case": case.name, "seconds": seconds, "token_ids": token_ids}
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
