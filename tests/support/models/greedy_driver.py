"""A small driver of models: pages in random order, poisoned memory, chunks, strangers."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from tokenbus.engine.interfaces import ForwardContext, PagedModel
from tokenbus.engine.kv_cache import KVCache

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(slots=True)
class Text:
    """One sequence of the driver."""

    token_ids: list[int]
    num_prompt: int
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0


@dataclass(slots=True)
class GreedyDriver:
    """Generates greedily for many prompts at once, every pass mixing prefill and decode.

    `meddle` is called with the running texts before each pass (to break things on purpose).
    """

    model: PagedModel
    page_size: int = 16
    chunk: int = 64
    num_pages: int = 400
    seed: int = 0
    dtype: torch.dtype = torch.float32
    meddle: Callable[[list[Text]], None] | None = None

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Return the new tokens of each prompt."""
        cpu = torch.device("cpu")
        kv = KVCache(self.model.attention_specs, self.num_pages, self.page_size, self.dtype, cpu)
        for pages in (*kv.k, *kv.v):
            pages.fill_(torch.nan)
        free = list(range(1, self.num_pages))
        random.Random(self.seed).shuffle(free)
        texts = [Text(list(prompt), len(prompt)) for prompt in prompts]
        for text in texts:
            needed = -(-(text.num_prompt + max_tokens) // self.page_size)
            text.pages = [free.pop() for _ in range(needed)]
        while running := [t for t in texts if len(t.token_ids) - t.num_prompt < max_tokens]:
            self._step(running, kv)
        return [text.token_ids[text.num_prompt :] for text in texts]

    def _step(self, running: list[Text], kv: KVCache) -> None:
        spans = [
            (t.num_computed, min(len(t.token_ids), t.num_computed + self.chunk)) for t in running
        ]
        query_lens = [end - start for start, end in spans]
        ids = [t.token_ids[start:end] for t, (start, end) in zip(running, spans, strict=True)]
        positions = [torch.arange(start, end) for start, end in spans]
        if self.meddle is not None:
            self.meddle(running)
        slots = [
            torch.tensor(t.pages)[where // self.page_size] * self.page_size + where % self.page_size
            for t, where in zip(running, positions, strict=True)
        ]
        width = max(len(t.pages) for t in running)
        ctx = ForwardContext(
            kv=kv,
            positions=torch.cat(positions),
            slot_mapping=torch.cat(slots),
            # Entries past the last page must not be read: this id would be out of range.
            block_table=torch.tensor(
                [t.pages + [10**8] * (width - len(t.pages)) for t in running], dtype=torch.int32
            ),
            context_lens=torch.tensor([end for _, end in spans], dtype=torch.int32),
            cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).int(),
            query_lens=query_lens,
            context_lens_host=[end for _, end in spans],
        )
        hidden = self.model.forward(torch.tensor(list(chain.from_iterable(ids))), ctx)
        logits = self.model.logits(hidden[ctx.cu_seqlens_q[1:].long() - 1])
        assert logits.dtype == torch.float32
        for text, (_, end), row in zip(running, spans, logits, strict=True):
            text.num_computed = end
            if end == len(text.token_ids):
                text.token_ids.append(int(row.argmax()))


@dataclass(frozen=True, slots=True)
class Reference:
    """What transformers itself generates, greedily and one prompt at a time."""

    model: Any

    @torch.inference_mode()
    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Return the new tokens of each prompt."""
        answers = []
        for prompt in prompts:
            out = self.model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                do_sample=False,
                max_new_tokens=max_tokens,
                min_new_tokens=max_tokens,
                eos_token_id=None,
                pad_token_id=0,
            )
            answers.append(out[0, len(prompt) :].tolist())
        return answers

    @torch.inference_mode()
    def check(self, prompts: list[list[int]], answers: list[list[int]]) -> float:
        """Check that answers are greedy; return how far ahead of the next an id is at the least.

        By induction, as each id follows from those before it: one pass over a prompt and its
        answer shows what generating it would, in a small part of the time.
        """
        least = float("inf")
        for prompt, answer in zip(prompts, answers, strict=True):
            logits = self.model(torch.tensor([prompt + answer[:-1]])).logits
            best = logits[0, len(prompt) - 1 :].topk(2, dim=-1)  # [num_tokens, 2]
            assert answer == best.indices[:, 0].tolist()
            least = min(least, (best.values[:, 0] - best.values[:, 1]).min().item())
        return least


def draw_prompts(vocab_size: int, lengths: list[int]) -> list[list[int]]:
    """Draw prompts of given lengths that have nothing in common."""
    rng = random.Random(7)
    return [[rng.randrange(3, vocab_size) for _ in range(n)] for n in lengths]
