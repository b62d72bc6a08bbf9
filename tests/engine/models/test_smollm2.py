"""The demo model, as pulled: what transformers answers, we answer.

Slow: tests/engine/core/test_smollm2.py shows the same by way of the engine.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from models.backends import cpu_backend
from transformers import AutoModelForCausalLM

from tokenbus.engine.errors import ModelNotFound
from tokenbus.engine.weights import model_store
from tokenbus.engine.weights.loader import load_model

_QUESTIONS = [
    "Which shoes go with a blue suit?",
    "Write one sentence about rain.",
    "Where is my parcel 4711?",
]


@pytest.mark.slow
def test_smollm2_answers_as_transformers_does(driver: Any, reference: Any) -> None:
    """Greedy answers to chat prompts are equal in float32, batched and chunked."""
    try:
        folder = model_store.pull("smollm2-135m")
    except ModelNotFound as error:
        pytest.skip(f"the demo model cannot be fetched: {error}")
    loaded = load_model(folder, cpu_backend(), dtype="float32")
    texts = [
        loaded.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}],
            add_generation_prompt=True,
            return_dict=True,
        )["input_ids"]
        for question in _QUESTIONS
    ]
    answers = driver(loaded.model, page_size=16, chunk=24, num_pages=64).generate(texts, 16)
    factory: Any = AutoModelForCausalLM
    theirs = factory.from_pretrained(folder, dtype=torch.float32).eval()
    assert answers == reference(theirs).generate(texts, 16)
