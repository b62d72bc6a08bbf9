"""Offline workloads of token ids, fixed by a seed: equal work for every engine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import TYPE_CHECKING

from tokenbus.engine.types import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

_VOCABULARY = 10_000
# How every token of a workload is drawn that says nothing else.
_PLAIN = SamplingParams(temperature=0.6, ignore_eos=True)
# Tokens of the lone prompts whose first token is timed, and how many there are of each.
FIRST_TOKEN_LENS = (50, 600, 2000, 8000)
FIRST_TOKEN_RUNS = 8


@dataclass(frozen=True, slots=True)
class OfflineWorkload:
    """Prompts, the exact number of output tokens of each, and how these are drawn.

    `params` leaves out what every sequence has of its own: its length and its seed.
    """

    name: str
    prompts: tuple[tuple[int, ...], ...]
    output_lens: tuple[int, ...]
    params: SamplingParams = _PLAIN

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of all sequences."""
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all sequences."""
        return sum(self.output_lens)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence when it has ended."""
        lens = zip(self.prompts, self.output_lens, strict=True)
        return max(len(prompt) + length for prompt, length in lens)


def _tokens(source: Random, count: int) -> tuple[int, ...]:
    return tuple(source.randint(0, _VOCABULARY) for _ in range(count))


def mixed(num_seqs: int = 256, shortest: int = 100, longest: int = 1024) -> OfflineWorkload:
    """Sequences of uniformly drawn lengths, in and out: the offline run engines usually quote."""
    source = Random(0)
    prompts = tuple(_tokens(source, source.randint(shortest, longest)) for _ in range(num_seqs))
    lens = tuple(source.randint(shortest, longest) for _ in range(num_seqs))
    return OfflineWorkload(f"nano{num_seqs}", prompts, lens)


def uniform(
    name: str, num_seqs: int, num_prompt: int, num_output: int, seed: int = 2
) -> OfflineWorkload:
    """Sequences of equal length without anything in common."""
    source = Random(seed)
    prompts = tuple(_tokens(source, num_prompt) for _ in range(num_seqs))
    return OfflineWorkload(name, prompts, (num_output,) * num_seqs)


def shared_prefix(
    num_prefixes: int,
    num_seqs: int = 512,
    num_shared: int = 2048,
    num_own: int = 100,
    num_output: int = 128,
) -> OfflineWorkload:
    """Customers of a few shops: one of `num_prefixes` system prompts, plus tokens of their own."""
    source = Random(1)
    prefixes = [_tokens(source, num_shared) for _ in range(num_prefixes)]
    prompts = tuple(
        prefixes[idx % num_prefixes] + _tokens(source, num_own) for idx in range(num_seqs)
    )
    return OfflineWorkload(f"shared{num_prefixes}x{num_shared}", prompts, (num_output,) * num_seqs)


def long_prompts(num_seqs: int = 96) -> OfflineWorkload:
    """Long prompts with some output, as of assistants that read: lengths log-normal.

    200 to 16,000 tokens in, half of them over 6,600, and 8 to 800 out, half of them over 245.
    """
    source = Random(7)
    prompts, lens = [], []
    for _ in range(num_seqs):
        num_prompt = min(16_000, max(200, int(source.lognormvariate(8.8, 0.9))))
        prompts.append(_tokens(source, num_prompt))
        lens.append(max(8, min(800, int(source.lognormvariate(5.5, 0.8)))))
    return OfflineWorkload("moon", tuple(prompts), tuple(lens))


def _drawn(name: str, params: SamplingParams) -> OfflineWorkload:
    """Return the mixed workload with other rules for the draw."""
    return replace(mixed(), name=name, params=params)


# Workloads of plain draws: what `tokenbus bench pool` sends through a queue as well.
WORKLOADS: dict[str, Callable[[], OfflineWorkload]] = {
    "nano256": mixed,
    "nano512": lambda: mixed(512),
    "nano1024": lambda: mixed(1024, 50, 400),
    "single": lambda: uniform("single", 1, 100, 512),
    "batch8": lambda: uniform("batch8", 8, 100, 256),
    "batch64": lambda: uniform("batch64", 64, 200, 256),
    "prefill2k": lambda: uniform("prefill2k", 64, 2000, 1, seed=11),
    "prefill8k": lambda: uniform("prefill8k", 16, 8000, 1, seed=12),
    "moon": long_prompts,
    "shared1x2048": lambda: shared_prefix(1),
    "shared8x2048": lambda: shared_prefix(8),
}
# Those of `tokenbus bench engine`.
ENGINE_WORKLOADS: dict[str, Callable[[], OfflineWorkload]] = WORKLOADS | {
    "nano_topp": lambda: _drawn("nano_topp", replace(_PLAIN, top_p=0.9, top_k=50)),
    "nano_pen": lambda: _drawn(
        "nano_pen", replace(_PLAIN, repetition_penalty=1.1, presence_penalty=0.2)
    ),
}
