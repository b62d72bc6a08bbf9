"""Every family that the decoder covers generates what transformers generates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.architectures import DECODER
from models.backends import cpu_backend, stepwise_backend

from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.weights.loader import build_model

_QUICK = {"llama-mha-bias-tied", "qwen2-mixed-windows", "gemma3", "phi3-partial-rotary"}


@pytest.mark.parametrize(
    "name",
    # The others run through the whole engine in tests/engine/core/test_matrix.py.
    [name if name in _QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DECODER],
)
def test_greedy_tokens_equal_transformers(
    name: str, sizes: Any, draw_model: Any, prompts: Any, driver: Any, reference: Any
) -> None:
    """Batched with strangers, chunked and paged, each prompt yields transformers' own tokens.

    By the compiled kernels, where there is a compiler, and step by step in torch.
    """
    config_class, changes = DECODER[name]
    config = config_class(**sizes(**changes))
    theirs = draw_model(config)
    texts = prompts(199, [1, 15, 16, 17, 130, 600])
    answers: list[list[list[int]]] = []
    for backend in (cpu_backend(), stepwise_backend()):
        ours = build_model(
            config,
            theirs.state_dict(),
            backend,
            dtype=torch.float32,
            max_model_len=700,
        )
        assert isinstance(ours, Decoder)
        answers.append(driver(ours, page_size=64, chunk=64, seed=2).generate(texts, 48))
        few = driver(ours, page_size=16, chunk=7, seed=1).generate(texts[:5], 48)
        assert few == answers[-1][:5]
        assert driver(ours, page_size=16, chunk=64).generate(texts[3:4], 48) == few[3:4]
    compiled, stepwise = answers
    assert compiled == stepwise
    reference(theirs).check(texts, compiled)
    assert max(len(set(answer)) for answer in compiled) >= 10, "the reference itself is too dull"
