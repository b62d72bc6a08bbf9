"""Engines of several ranks over tiny random models, and what is asked of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from models.architectures import DECODER, draw_model, tiny_sizes

from tokenbus.engine.build import build_engine
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from pathlib import Path

    from tokenbus.engine.engine import Engine

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def saved(folder: Path, name: str, **changes: Any) -> str:
    """Save a tiny model of a family; return its folder."""
    family, fields = DECODER[name]
    sizes = tiny_sizes(**({"vocab_size": 200, "num_hidden_layers": 2} | fields | changes))
    draw_model(family(**sizes), seed=1).save_pretrained(folder)
    return str(folder)


def prompts() -> list[tuple[int, ...]]:
    """Return prompts of which some share pages and one takes several chunks."""
    shared = tuple(range(3, 43))
    long = tuple(torch.randint(3, 190, (150,), generator=torch.Generator().manual_seed(2)).tolist())
    return [(*shared, 50, 51), (*shared, 60), (7, 8), long]


def engine(model: str, size: int = 1, **settings: Any) -> Engine:
    """Build a small engine in float32."""
    defaults: dict[str, Any] = {
        "dtype": "float32", "device": "cpu", "num_pages": 80, "page_size": 16, "max_num_seqs": 8,
        "max_batch_tokens": 64, "num_threads": 1, "tensor_parallel": size,
    }  # fmt: skip
    return build_engine(EngineConfig(model, **(defaults | settings)))


def answers(engine: Engine, requests: list[Request]) -> dict[tuple[int, int], list[int]]:
    """Answer requests and close the engine; return the tokens of each choice."""
    found: dict[tuple[int, int], list[int]] = {}
    for request in requests:
        engine.add(request)
    while engine.has_work:
        for delta in engine.step().deltas:
            assert delta.error is None, delta.error
            found.setdefault((delta.request_id, delta.choice), []).extend(delta.token_ids)
        engine.check_integrity()
    engine.close()
    return found


def asked(params: SamplingParams = GREEDY) -> list[Request]:
    """Return a request for each prompt, the second of which finds what the first left."""
    return [Request(number, ids, params) for number, ids in enumerate(prompts())]
