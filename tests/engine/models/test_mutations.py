"""The equality tests can fail: each way of breaking attention changes the tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.backends import stepwise_backend
from transformers import LlamaConfig

from tokenbus.engine.attention import torch_attention
from tokenbus.engine.attention.torch_attention import TorchAttention
from tokenbus.engine.weights.loader import build_model

_LENGTHS = [5, 40, 90]


class _Zeroed(TorchAttention):
    """Attention that answers with zeros."""

    def attend(self, q: Any, k: Any, v: Any, spec: Any, ctx: Any) -> torch.Tensor:
        """Return zeros."""
        return torch.zeros_like(super().attend(q, k, v, spec, ctx))


@pytest.fixture
def build(sizes: Any, draw_model: Any) -> Any:
    """Return a function that builds the same tiny Llama over any attention."""
    config = LlamaConfig(**sizes())
    weights = draw_model(config).state_dict()

    def make(attention: TorchAttention | None = None) -> Any:
        return build_model(
            config,
            weights,
            stepwise_backend(attention),
            dtype=torch.float32,
            max_model_len=256,
        )

    return make


def test_zeroed_attention_changes_tokens(build: Any, driver: Any, prompts: Any) -> None:
    """A model without attention does not pass for the model."""
    texts = prompts(199, _LENGTHS)
    whole = driver(build()).generate(texts, 48)
    broken = driver(build(_Zeroed())).generate(texts, 48)
    assert all(a != b for a, b in zip(whole, broken, strict=True))


def test_dropped_rope_changes_tokens(build: Any, driver: Any, prompts: Any) -> None:
    """A model without rotary positions does not pass for the model."""
    texts = prompts(199, _LENGTHS)
    whole = driver(build()).generate(texts, 48)
    model = build()
    for layer in model.tensors.layers:
        layer.rope = None
    broken = driver(model).generate(texts, 48)
    assert all(a != b for a, b in zip(whole, broken, strict=True))


@pytest.mark.parametrize("shift", [-1, 1])
def test_mask_off_by_one_changes_tokens(
    build: Any, driver: Any, prompts: Any, monkeypatch: pytest.MonkeyPatch, shift: int
) -> None:
    """Seeing one token too many or too few does not go unnoticed."""
    texts = prompts(199, _LENGTHS)
    whole = driver(build()).generate(texts, 48)

    def wrong_mask(_: Any, queries: int, keys: int, *__: Any) -> torch.Tensor:
        visible = torch.ones(queries, keys).tril(keys - queries + shift)
        visible[:, 0] = 1
        return torch.zeros(queries, keys).masked_fill_(visible == 0, -torch.inf)

    monkeypatch.setattr(torch_attention, "block_mask", wrong_mask)
    broken = driver(build()).generate(texts, 48)
    assert all(a != b for a, b in zip(whole, broken, strict=True))


def test_two_swapped_pages_change_tokens(build: Any, driver: Any, prompts: Any) -> None:
    """Reading another sequence's page does not go unnoticed."""
    texts = prompts(199, [40, 90])
    whole = driver(build()).generate(texts, 48)
    swapped: list[bool] = []

    def swap(running: Any) -> None:
        if not swapped and all(text.num_computed >= 32 for text in running):
            first, second = running
            first.pages[1], second.pages[1] = second.pages[1], first.pages[1]
            swapped.append(True)

    broken = driver(build(), meddle=swap).generate(texts, 48)
    assert swapped
    assert all(a != b for a, b in zip(whole, broken, strict=True))
