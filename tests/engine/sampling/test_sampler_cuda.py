"""The sampler on a GPU: the tokens of the CPU, eager and from a captured graph."""

from __future__ import annotations

import random

import pytest
import torch

from tokenbus.engine.execution.rows import RowState
from tokenbus.engine.execution.step_masks import StepMasks
from tokenbus.engine.sampling.bitmask import bitmask_width
from tokenbus.engine.sampling.sampler import SamplingState
from tokenbus.engine.types import SamplingParams

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

VOCAB = 5003
NUM_STEPS = 40
ROWS = [
    SamplingParams(temperature=0.0, frequency_penalty=0.5),
    SamplingParams(seed=1, top_k=50, repetition_penalty=1.3),
    SamplingParams(seed=2, temperature=1.3, top_p=0.9, logit_bias={7: 4.0}),
    SamplingParams(seed=3, min_p=0.05, bad_words=((5, 6), (9,)), min_tokens=20),
    SamplingParams(seed=4, top_k=20, top_p=0.8, presence_penalty=0.3, logprobs=2),
]


def state_on(device: str) -> SamplingState:
    """Return a state with every row set."""
    state = SamplingState(len(ROWS), VOCAB, device, (2,))
    for row, params in enumerate(ROWS):
        state.set_row(row, params, 0, [1, 5, 9])
    return state


def logits_at(step: int) -> torch.Tensor:
    """Return the logits of one step on the CPU."""
    generator = torch.Generator().manual_seed(step)
    return torch.randn(len(ROWS), VOCAB, generator=generator) * 3


def test_captured_graph_draws_the_tokens_of_the_cpu() -> None:
    """One graph, replayed with new logits and positions, equals eager sampling on the CPU."""
    cpu, gpu = state_on("cpu"), state_on("cuda")
    plan = gpu.plan(range(len(ROWS)))
    rows = torch.arange(len(ROWS), device="cuda")
    logits = torch.zeros(len(ROWS), VOCAB, device="cuda")
    positions = torch.zeros(len(ROWS), dtype=torch.int64, device="cuda")
    bitmask = torch.full((len(ROWS), bitmask_width(VOCAB)), -1, dtype=torch.int32, device="cuda")
    gpu.sample(logits, rows, positions, plan=plan, bitmask=bitmask)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = gpu.sample_with_plan(logits, rows, positions, plan, bitmask)
    for row, params in enumerate(ROWS):
        gpu.set_row(row, params, 0, [1, 5, 9])
    gpu.flush()
    num_different = 0
    for step in range(NUM_STEPS):
        logits.copy_(logits_at(step))
        positions.fill_(step)
        graph.replay()
        expected = cpu.sample(
            logits_at(step), torch.arange(len(ROWS)), torch.full((len(ROWS),), step)
        )
        assert expected.logprobs is not None
        assert captured.logprobs is not None
        different = captured.token_ids.cpu() != expected.token_ids
        num_different += int(different.sum())
        same = ~different
        torch.testing.assert_close(
            captured.logprobs.logprobs.cpu()[same],
            expected.logprobs.logprobs[same],
            rtol=1e-5,
            atol=1e-5,
        )
    # A draw within rounding of a border may fall on the other side.
    assert num_different <= 1


def test_masks_are_sent_between_replays() -> None:
    """A replay under masks that change, come and go equals a launch, bit for bit."""
    replayed, launched = state_on("cuda"), state_on("cuda")
    num, device = len(ROWS), torch.device("cuda")
    plan = replayed.plan(range(num))
    masks = StepMasks(RowState(num, 1, device), VOCAB)
    rows = torch.arange(num, device=device)
    logits = torch.zeros(num, VOCAB, device=device)
    positions, numbers = torch.zeros(2, num, dtype=torch.int64, device=device)
    replayed.sample(logits, rows, positions, plan=plan, bitmask=masks.of(numbers))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = replayed.sample_with_plan(logits, rows, positions, plan, masks.of(numbers))
    for row, params in enumerate(ROWS):
        replayed.set_row(row, params, 0, [1, 5, 9])
    replayed.flush()
    chance = random.Random(1)
    free = torch.full((bitmask_width(VOCAB),), -1, dtype=torch.int32)
    for step in range(NUM_STEPS):
        generator = torch.Generator().manual_seed(step)
        some = [
            torch.randint(-(2**31), 2**31, free.shape, generator=generator).int() for _ in range(3)
        ]
        own = [chance.choice((None, *some)) for _ in range(num)]
        logits.copy_(logits_at(step))
        positions.fill_(step)
        numbers.copy_(torch.tensor(masks.send(own)))
        graph.replay()
        bitmask = torch.stack([free if mask is None else mask for mask in own]).to(device)
        expected = launched.sample(logits, rows, positions, plan=plan, bitmask=bitmask)
        assert torch.equal(captured.token_ids, expected.token_ids)
        assert expected.logprobs is not None
        assert captured.logprobs is not None
        assert torch.equal(captured.logprobs.logprobs, expected.logprobs.logprobs)
