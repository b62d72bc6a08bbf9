"""Runs of pages that running sequences share: read once for all, seen in no token."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pytest

from tokenbus.engine.attention import native_attention
from tokenbus.engine.backends import NativeBackend
from tokenbus.engine.build import engine_for
from tokenbus.engine.config import EngineConfig
from tokenbus.engine.types import Request, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from tokenbus.engine.engine import Engine
    from tokenbus.engine.scheduling.prefix_grouping import PrefixSharing, SharedRun


class _Recorder:
    """Passes a backend's runs on and remembers the largest assignments."""

    def __init__(self, backend: PrefixSharing) -> None:
        self._backend = backend
        self.rows = self.runs = 0

    def assign_runs(self, runs: Sequence[SharedRun]) -> None:
        self.runs = max(self.runs, len(runs))
        self.rows = max(self.rows, *(len(run.rows) for run in runs), 0)
        self._backend.assign_runs(runs)

    @property
    def splits_answers(self) -> bool:
        return self._backend.splits_answers

    @property
    def has_runs(self) -> bool:
        return self._backend.has_runs

    def assuming_runs(self) -> AbstractContextManager[None]:
        return self._backend.assuming_runs()

    def pays(self, num_rows: int, num_pages: int) -> bool:
        return self._backend.pays(num_rows, num_pages)


@dataclass(frozen=True, slots=True, kw_only=True)
class _RecordedBackend(NativeBackend):
    """The CPU's kernels behind a recorder of runs."""

    recorder: _Recorder

    @property
    def sharing(self) -> PrefixSharing:
        """Return the recorder."""
        return self.recorder


@pytest.fixture
def engines(tiny: Any) -> Callable[..., tuple[Engine, Engine, _Recorder]]:
    """Return a function that builds two engines, with shared runs and without."""
    backend = tiny.loaded.backend
    if backend.sharing is None:
        pytest.skip("there is no C++ compiler")

    def build(**settings: Any) -> tuple[Engine, Engine, _Recorder]:
        config = EngineConfig("tiny", page_size=16, max_num_seqs=32, **settings)
        recorder = _Recorder(backend.sharing)
        recorder.assign_runs([])
        recorded = _RecordedBackend(
            device=backend.device, attention=backend.attention, recorder=recorder
        )
        loaded = replace(tiny.loaded, backend=recorded)
        apart = engine_for(loaded, replace(config, prefix_grouping=False))
        return engine_for(loaded, config), apart, recorder

    return build


def _tokens(run: Any, engine: Engine, requests: list[Request]) -> dict[Any, list[int]]:
    # Whoever comes first fills the cache for the others.
    first = run(engine, requests[:1])
    answers = first | run(engine, requests[1:])
    return {key: answer.token_ids for key, answer in answers.items()}


def test_tokens_are_the_same_with_and_without_shared_runs(engines: Any, run: Any) -> None:
    """Twelve jobs under one system prompt give the same greedy tokens either way."""
    together, apart, recorder = engines(num_pages=400)
    rng = random.Random(1)
    system = tuple(rng.randrange(3, 300) for _ in range(210))
    requests = [
        Request(idx, (*system, *(rng.randrange(3, 300) for _ in range(1 + idx % 5))),
                SamplingParams(max_tokens=24, temperature=0.0))
        for idx in range(13)
    ]  # fmt: skip
    # One backend serves both: the engine that assigns no runs comes first.
    expected = _tokens(run, apart, requests)
    assert recorder.runs == 0
    assert _tokens(run, together, requests) == expected
    assert (recorder.runs, recorder.rows) == (1, 12)


@pytest.mark.parametrize("seed", range(6))
def test_any_tree_of_prompts_gives_the_same_tokens(
    engines: Any, run: Any, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two levels of short prefixes, whole prompts from the cache, preemption in a tight pool."""
    monkeypatch.setattr(native_attention, "_BREAK_EVEN_PAGES", 1)
    rng = random.Random(seed)
    together, apart, recorder = engines(num_pages=60 if seed % 2 else 300, max_batch_tokens=64)
    words = [tuple(rng.randrange(3, 300) for _ in range(32)) for _ in range(4)]
    requests = []
    for idx in range(28):
        prompt = [*words[rng.randrange(2)], *(words[2 + rng.randrange(2)] if idx % 3 else ())]
        # The tail may be empty: all but the last token comes from the cache.
        prompt += [rng.randrange(3, 300) for _ in range(rng.choice((0, 1, 7, 20)))]
        params = SamplingParams(max_tokens=rng.randrange(4, 30), temperature=0.0)
        requests.append(Request(idx, tuple(prompt), params))
    # One backend serves both: the engine that assigns no runs comes first.
    expected = _tokens(run, apart, requests)
    assert recorder.runs == 0
    assert _tokens(run, together, requests) == expected
    assert recorder.rows >= 6


def test_engines_of_one_model_keep_their_runs_apart(tiny: Any, run: Any) -> None:
    """Of two that step in turn the second alone has prompts under one system prompt."""
    rng = random.Random(2)
    parts = [tuple(rng.randrange(3, 300) for _ in range(210)) for _ in range(8)]
    params = SamplingParams(max_tokens=12, temperature=0.0)
    requests = [
        Request(idx, (*parts[0 if idx < 7 else idx - 6], idx + 3), params) for idx in range(14)
    ]
    expected = {key: answer.token_ids for key, answer in run(tiny.engine(), requests).items()}
    pair = tiny.engine(), tiny.engine()
    for request in requests:
        pair[request.request_id < 7].add(request)
    found: dict[tuple[int, int], list[int]] = {key: [] for key in expected}
    while any(engine.has_work for engine in pair):
        for engine in pair:
            for delta in engine.step().deltas:
                found[delta.request_id, delta.choice] += delta.token_ids
    assert found == expected
