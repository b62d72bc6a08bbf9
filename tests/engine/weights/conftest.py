"""A tiny model, and a sound checkpoint of it to be broken."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from models.architectures import draw_model, tiny_sizes
from models.stored_checkpoint import (
    StoredCheckpoint,
)
from transformers import LlamaConfig

from tokenbus.engine.null.null_tokenizer import build_null_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def _nobody_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(*_: object) -> str:
        pytest.fail("a question was asked on stdin")

    monkeypatch.setattr("builtins.input", ask)


@pytest.fixture(scope="module")
def model() -> Any:
    """Return a tiny Llama of one layer."""
    return draw_model(LlamaConfig(**tiny_sizes(vocab_size=512, num_hidden_layers=1)))


@pytest.fixture
def case(model: Any, tmp_path: Path) -> StoredCheckpoint:
    """Return a sound checkpoint with a tokenizer."""
    model.save_pretrained(tmp_path)
    build_null_tokenizer().save_pretrained(tmp_path)
    return StoredCheckpoint(tmp_path).read()
