"""A tiny fp32 Llama on disk, and what it says unbroken: greedy, by transformers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tokenbus.engine.null_tokenizer import build_null_tokenizer

if TYPE_CHECKING:
    from pathlib import Path

# Closer than this, two tokens may change places with the order of a sum.
NEAR_TIE = 1e-3


@dataclass(frozen=True, slots=True)
class Reference:
    """An unbroken run; `num_certain` tokens come before the first near tie."""

    ids: list[int]
    num_certain: int


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
        self.reference = cache(self._reference)

    def text(self, ids: list[int]) -> str:
        """Return the text of generated ids."""
        text = self._tokenizer.decode(ids)
        assert isinstance(text, str)
        return text

    def prompt_logprobs(self, prompt: str) -> torch.Tensor:
        """Return the logprob of each prompt token but the first: [num_tokens - 1]."""
        ids = torch.tensor([self._tokenizer.encode(prompt)])
        scores = self._model(ids).logits[0, :-1].log_softmax(-1)
        found: torch.Tensor = scores.gather(1, ids[0, 1:, None])[:, 0]
        return found

    def _reference(self, prompt: str, num_tokens: int) -> Reference:
        ids = self._tokenizer.encode(prompt)
        made = self._model.generate(
            torch.tensor([ids]),
            max_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        best = torch.stack(made.logits, dim=1)[0].topk(2, dim=-1).values  # [num_tokens, 2]
        near = (best[:, 0] - best[:, 1] < NEAR_TIE).nonzero()
        num_certain = int(near[0]) if len(near) else num_tokens
        return Reference(made.sequences[0, len(ids) :].tolist(), num_certain)
