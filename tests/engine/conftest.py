"""Tiny random models whose greedy output is sensitive to every part of attention."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from models.backends import cpu_backend
from models.interpreter import keep_language
from transformers import AutoModelForCausalLM, LlamaConfig

from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import FinishReason, Request, SamplingParams, TokenDelta
from tokenbus.engine.weights.loader import LoadedModel, build_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from tokenbus.engine.engine import Engine

keep_language()
VOCAB_SIZE = 320
MAX_LEN = 1024


@dataclass(slots=True)
class Answer:
    """All deltas of one choice, put together."""

    token_ids: list[int]
    reason: FinishReason | None
    deltas: list[TokenDelta]


class TinyModel:
    """A reference model of transformers and the same weights in the engine."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        # With the default initializer_range of 0.02 output survives zeroed attention.
        config = LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.4,
            max_position_embeddings=MAX_LEN,
            eos_token_id=None,
            bos_token_id=None,
        )
        auto: Any = AutoModelForCausalLM
        self.reference = auto.from_config(config).eval()
        backend = cpu_backend()
        self.loaded = LoadedModel(
            model=build_model(
                config,
                self.reference.state_dict(),
                backend,
                dtype=torch.float32,
                max_model_len=MAX_LEN,
            ),
            config=config,
            tokenizer=None,
            eos_token_ids=(),
            max_model_len=MAX_LEN,
            name="tiny",
            dtype=torch.float32,
            backend=backend,
        )

    def engine(self, **settings: Any) -> Engine:
        """Build an engine with a small pool."""
        defaults = {"num_pages": 200, "page_size": 16, "max_num_seqs": 32}
        return engine_for(self.loaded, EngineConfig("tiny", **(defaults | settings)))

    def greedy(self, prompt: tuple[int, ...], num_tokens: int) -> list[int]:
        """Return what transformers generates."""
        with torch.no_grad():
            out = self.reference.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        return out[0, len(prompt) :].tolist()  # type: ignore[no-any-return]


def run_engine(engine: Engine, requests: list[Request]) -> dict[tuple[int, int], Answer]:
    """Run requests to their ends, checking the page pool after every step."""
    answers: dict[tuple[int, int], Answer] = {}
    for request in requests:
        engine.add(request)
        for choice in range(request.params.n):
            answers[request.request_id, choice] = Answer([], None, [])
    while engine.has_work:
        for delta in engine.step().deltas:
            answer = answers[delta.request_id, delta.choice]
            assert answer.reason is None, "a token or an end came after the end"
            answer.token_ids.extend(delta.token_ids)
            answer.reason = delta.finish_reason
            answer.deltas.append(delta)
        engine.check_integrity()
    stats = engine.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    return answers


@pytest.fixture(scope="session")
def tiny() -> TinyModel:
    """Return the tiny model, built once."""
    return TinyModel()


@pytest.fixture
def run() -> Callable[[Engine, list[Request]], dict[tuple[int, int], Answer]]:
    """Return the function that runs an engine dry."""
    return run_engine


@pytest.fixture(scope="session")
def prompts() -> list[tuple[int, ...]]:
    """Return prompts of odd lengths, two of which share a prefix with a third."""
    source = random.Random(0)
    lens = (1, 5, 15, 16, 17, 33, 80, 120)
    drawn = [tuple(source.randrange(VOCAB_SIZE) for _ in range(length)) for length in lens]
    return [*drawn, (*drawn[6], 7, 8, 9), (*drawn[6][:40], 1, 2)]


@pytest.fixture
def greedy() -> SamplingParams:
    """Return greedy parameters for 40 tokens."""
    return SamplingParams(max_tokens=40, temperature=0.0)
