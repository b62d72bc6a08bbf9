"""Every architecture through the whole engine: what transformers says, whatever happens on the way.

Prompts of 1 to 600 tokens, batched with strangers that sample, cut in chunks, on pages of two
sizes, with a pool so small that sequences have to give up their pages and come back.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from models.architectures import DECODER, GENERIC, draw_model, tiny_sizes
from models.backends import cpu_backend
from models.greedy_driver import Reference
from models.scheduler_bench import Optimist

from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.models.decoder import Decoder
from tokenbus.engine.models.hf_generic import GenericModel
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.engine.weights.loader import LoadedModel, build_model

VOCAB_SIZE = 199
MAX_LEN = 700
NUM_TOKENS = 48
LENGTHS = (1, 15, 16, 17, 63, 130, 600)
SMALL_LENGTHS = (1, 16, 17, 130)
STRANGER = 1000
# Closer than this, two tokens may change places with the order of a sum.
NEAR_TIE = 1e-4
# Mixtures beside a plain one and one with a shared expert.
_RARER = frozenset({"mixtral", "olmoe", "granitemoe", "granitemoeshared"})


@dataclass(frozen=True, slots=True)
class Case:
    """An architecture: the reference and the same weights in the engine's own model."""

    reference: Any
    loaded: LoadedModel


@cache
def case(name: str) -> Case:
    """Draw an architecture's weights once."""
    config_class, changes = (DECODER | GENERIC)[name]
    config = config_class(**tiny_sizes(**changes))
    reference = draw_model(config)
    backend = cpu_backend()
    model = build_model(
        config,
        reference.state_dict(),
        backend,
        dtype=torch.float32,
        max_model_len=MAX_LEN,
    )
    assert isinstance(model, Decoder if name in DECODER else GenericModel)
    loaded = LoadedModel(
        model=model,
        config=config,
        tokenizer=None,
        eos_token_ids=(),
        max_model_len=MAX_LEN,
        name=name,
        dtype=torch.float32,
        backend=backend,
    )
    return Case(reference, loaded)


def check_answers(name: str, lengths: tuple[int, ...], answers: list[list[int]]) -> None:
    """Check answers with the reference, and that they vary enough to show an error."""
    assert [len(answer) for answer in answers] == [NUM_TOKENS] * len(lengths)
    margin = Reference(case(name).reference).check(draw_prompts(lengths), answers)
    assert margin > NEAR_TIE, "a near tie proves nothing"
    assert max(len(set(answer)) for answer in answers) >= 10, "the reference itself is too dull"


def draw_prompts(lengths: tuple[int, ...]) -> list[list[int]]:
    """Draw prompts that have nothing in common."""
    source = random.Random(7)
    return [[source.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in lengths]


def run(
    name: str, lengths: tuple[int, ...], page_size: int, chunk: int, *, tight: bool
) -> tuple[list[list[int]], int]:
    """Answer the prompts among strangers; return the answers and the number of preemptions.

    The longest streams before the others come, so that it and they want new pages at once.
    """
    prompts = draw_prompts(lengths)
    ends = [-(-(length + NUM_TOKENS) // page_size) for length in lengths]
    # Tight: the longest can just end beside a few short ones.
    num_pages = 1 + (max(ends) + 3 if tight else sum(ends) + 40)
    settings = EngineConfig(
        name, num_pages=num_pages, page_size=page_size, max_num_seqs=16, max_batch_tokens=chunk
    )
    engine = engine_for(case(name).loaded, settings)
    engine._scheduler.estimator = Optimist()
    answers: list[list[int]] = [[] for _ in prompts]

    def step() -> None:
        for delta in engine.step().deltas:
            if delta.request_id < STRANGER:
                answers[delta.request_id].extend(delta.token_ids)
        engine.check_integrity()

    greedy = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS)
    longest = len(prompts) - 1
    engine.add(Request(longest, tuple(prompts[longest]), greedy))
    while not answers[longest]:
        step()
    for idx, prompt in enumerate(prompts[:longest]):
        engine.add(Request(idx, tuple(prompt), greedy))
        sampled = SamplingParams(seed=idx, max_tokens=5 + 7 * idx, repetition_penalty=1.2)
        engine.add(Request(STRANGER + idx, tuple(prompt[:9]), sampled))
    engine.abort(STRANGER + 1)
    while engine.has_work:
        step()
    stats = engine.stats()
    assert stats.free_pages + stats.evictable_pages == num_pages - 1
    return answers, stats.preemptions_total


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow) if name in _RARER else name
        for name in [*DECODER, *GENERIC]
    ],
)
def test_tokens_equal_transformers_in_chunks_and_after_preemption(name: str) -> None:
    """Chunks of 64 tokens, small pages, too few of them: the tokens are transformers' own."""
    answers, num_preemptions = run(name, SMALL_LENGTHS, 16, 64, tight=True)
    check_answers(name, SMALL_LENGTHS, answers)
    assert num_preemptions > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DECODER, *GENERIC])
@pytest.mark.parametrize("tight", [False, True], ids=["roomy", "tight"])
@pytest.mark.parametrize("chunk", [7, 64])
@pytest.mark.parametrize("page_size", [16, 64])
def test_tokens_equal_transformers_for_every_chunk_page_and_pool(
    name: str, page_size: int, chunk: int, tight: bool
) -> None:
    """The whole product, with a prompt of 600 tokens."""
    answers, num_preemptions = run(name, LENGTHS, page_size, chunk, tight=tight)
    check_answers(name, LENGTHS, answers)
    assert (num_preemptions > 0) is tight
