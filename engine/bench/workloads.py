"""Offline workloads of token ids, fixed by a seed: equal work for every engine."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_VOCABULARY = 10_000


@dataclass(frozen=True, slots=True)
class OfflineWorkload:
    """Prompts and the exact number of output tokens of each."""

    name: str
    prompts: tuple[tuple[int, ...], ...]
    output_lens: tuple[int, ...]

    @property
    def num_prompt_tokens(self) -> int:
        """Prompt tokens of all sequences."""
        return sum(map(len, self.prompts))

    @property
    def num_output_tokens(self) -> int:
        """Output tokens of all sequences."""
        return sum(self.output_lens)


def _tokens(source: Random, count: int) -> tuple[int, ...]:
    return tuple(source.randint(0, _VOCABULARY) for _ in range(count))


def mixed(num_seqs: int = 256, shortest: int = 100, longest: int = 1024) -> OfflineWorkload:
    """Sequences of uniformly drawn lengths, in and out: the offline run engines usually quote."""
    source = Random(0)
    prompts = tuple(_tokens(source, source.randint(shortest, longest)) for _ in range(num_seqs))
    lens = tuple(source.randint(shortest, longest) for _ in range(num_seqs))
    return OfflineWorkload(f"nano{num_seqs}", prompts, lens)


def uniform(name: str, num_seqs: int, num_prompt: int, num_output: int) -> OfflineWorkload:
    """Sequences of equal length without anything in common."""
    source = Random(2)
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


WORKLOADS: dict[str, Callable[[], OfflineWorkload]] = {
    "nano256": mixed,
    "single": lambda: uniform("single", 1, 100, 512),
    "batch8": lambda: uniform("batch8", 8, 100, 256),
    "shared1x2048": lambda: shared_prefix(1),
    "shared8x2048": lambda: shared_prefix(8),
}
