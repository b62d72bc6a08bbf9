"""Jobs for the demo model in fp32, and the proof that each token is the greedy one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from models.tiny_model import num_greedy
from transformers import AutoModelForCausalLM, AutoTokenizer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rides.ride import Wanted
    from workers.null_workers import Story

_BATCH = 16


class DemoCargo:
    """Greedy answers of the model in `folder`, checked all together when the ride is over.

    Running the model over prompt and answer at once shows what it would have said after each
    token, so one pass per job proves the whole answer, up to the first near tie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._answers: dict[tuple[str, tuple[int, ...]], str] = {}
        self.settings: dict[str, Any] = {
            "engine": "paged",
            "model": str(folder),
            "dtype": "float32",
            "device": "cpu",
            "num_pages": 512,
            "max_num_seqs": 64,
            "num_threads": 1,
        }

    def fields(self, wanted: Wanted) -> dict[str, Any]:  # noqa: ARG002 -- all jobs are alike
        """Ask for the greedy answer of the full length."""
        return {"temperature": 0.0, "ignore_eos": True}

    def check(self, wanted: Wanted, story: Story) -> None:
        """Keep the answer for `check_answers`; its length is right."""
        ids = story.ids.get(0, [])
        assert len(ids) == wanted.num_tokens
        self._answers[wanted.prompt, tuple(ids)] = story.text

    def check_answers(self) -> float:
        """Prove every answer; return the share of them that met no near tie."""
        reference: Any = AutoModelForCausalLM.from_pretrained(self._folder, dtype=torch.float32)
        reference.eval()
        tokenizer: Any = AutoTokenizer.from_pretrained(self._folder)
        num_certain = 0
        for batch in self._batches():
            rows = [(tokenizer(prompt)["input_ids"], list(ids)) for prompt, ids in batch]
            for (prompt, ids), (_, said), logits in zip(
                batch, rows, _logits(reference, rows), strict=True
            ):
                num_certain += num_greedy(said, logits) == len(said)
                assert self._answers[prompt, ids] == tokenizer.decode(
                    said, skip_special_tokens=True
                )
        return num_certain / len(self._answers)

    def _batches(self) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
        answers = list(self._answers)
        for start in range(0, len(answers), _BATCH):
            yield answers[start : start + _BATCH]


def _logits(model: Any, rows: list[tuple[list[int], list[int]]]) -> Iterator[torch.Tensor]:
    """Give for each row the logits from which its answer's tokens came: [num_tokens, vocab]."""
    width = max(len(prompt) + len(said) for prompt, said in rows)
    padded = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (prompt, said) in zip(padded, rows, strict=True):
        row[: len(prompt) + len(said)] = torch.tensor(prompt + said)
    with torch.inference_mode():
        # Attention is causal: what pads a row on its right is seen by nothing that counts.
        logits = model(padded).logits
    for row, (prompt, said) in zip(logits, rows, strict=True):
        yield row[len(prompt) - 1 : len(prompt) + len(said) - 1]
