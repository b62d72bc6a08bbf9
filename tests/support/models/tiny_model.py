"""A tiny fp32 Llama on disk, and what it says unbroken: greedy, proven by transformers."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

# Closer than this, two tokens may change places with the order of a sum.
NEAR_TIE = 1e-3


def num_greedy(ids: list[int], logits: torch.Tensor) -> int:
    """Check each id up to the first near tie against the best one; return how many these are.

    `logits` is [len(ids), vocab], each row computed from what stands before its id.
    """
    best = logits.topk(2, dim=-1)
    near = (best.values[:, 0] - best.values[:, 1] < NEAR_TIE).nonzero()
    num_certain = int(near[0]) if len(near) else len(ids)
    assert ids[:num_certain] == best.indices[:num_certain, 0].tolist()
    return num_certain


class TinyModel:
    """The model, saved with a tokenizer of bytes and words into `folder`."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(3)
        config = LlamaConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=1024,
            # Wide enough that the output varies and few positions are near ties.
            initializer_range=0.4,
            eos_token_id=None,
            bos_token_id=None,
        )
        self.folder = folder
        made: Any = LlamaForCausalLM(config)
        self._model = made.requires_grad_(False).eval()
        self._model.save_pretrained(folder)
        self._tokenizer = build_null_tokenizer()
        self._tokenizer.save_pretrained(folder)
        self.num_certain = cache(self._num_certain)

    def text(self, ids: list[int]) -> str:
        """Return the text of generated ids."""
        text = self._tokenizer.decode(ids)
        assert isinstance(text, str)
        return text

    def greedy(self, prompt: str, num_tokens: int) -> list[int]:
        """Return the ids that transformers generates."""
        ids = torch.tensor([self._tokenizer.encode(prompt)])
        output = self._model.generate(
            ids, max_new_tokens=num_tokens, do_sample=False, pad_token_id=0
        )
        found: list[int] = output[0, ids.shape[1] :].tolist()
        return found

    def prompt_logprobs(self, prompt: str) -> torch.Tensor:
        """Return the logprob of each prompt token but the first: [num_tokens - 1]."""
        ids = torch.tensor([self._tokenizer.encode(prompt)])
        scores = self._model(ids).logits[0, :-1].log_softmax(-1)
        found: torch.Tensor = scores.gather(1, ids[0, 1:, None])[:, 0]
        return found

    def _num_certain(self, prompt: str, ids: tuple[int, ...]) -> int:
        """Prove an answer greedy; return how many of its ids come before the first near tie.

        By induction: what each id is compared with follows from the ids before it. So one pass over
        prompt and answer proves what another unbroken run would show, in a hundredth of its time.
        """
        before = self._tokenizer.encode(prompt)
        with torch.inference_mode():
            logits = self._model(torch.tensor([[*before, *ids]])).logits[0]
        return num_greedy(list(ids), logits[len(before) - 1 : -1])
