"""Hostile grammars end their own requests; nobody else notices."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import pytest
from models.hostile_grammars import NUM_FAMILIES, hostile_grammar, outcome_of
from models.tiny_model import TinyModel

from tokenbus.engine import LLM
from tokenbus.engine.types import (
    FaultCode,
    FinishReason,
    GrammarKind,
    GrammarSpec,
    Request,
    SamplingParams,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenbus.engine.types import TokenDelta

NUM_GRAMMARS = 11 * NUM_FAMILIES
NUM_AT_A_TIME = 32
GOOD = GrammarSpec(GrammarKind.REGEX, "(yes|no)")


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Run a tiny model under limits that make the test short."""
    folder = TinyModel(tmp_path_factory.mktemp("tiny")).folder
    bounds = {"grammar_compile_s": 0.15, "grammar_states": 1000, "grammar_items": 5000}
    running = LLM(folder, num_pages=400, max_num_seqs=48, **bounds)
    yield running
    running.close()


def _request(number: int, spec: GrammarSpec, tenant: str) -> Request:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=number, grammar=spec)
    return Request(number, (1, 2, 3), params, tenant=tenant)


def test_hostile_grammars_end_alone_beside_good_ones(llm: LLM) -> None:
    """Each ends by itself, the bad ones with their code; good ones between them all answer."""
    engine = llm.engine
    ends: dict[int, TokenDelta] = {}
    grammars = [hostile_grammar(seed) for seed in range(NUM_GRAMMARS)]
    waiting = [_request(one.seed, one.spec, f"hostile-{one.seed % 3}") for one in grammars]
    good = [_request(NUM_GRAMMARS + number, GOOD, "good") for number in range(NUM_GRAMMARS // 10)]
    asked = {request.request_id for request in (*waiting, *good)}
    while waiting or engine.has_work:
        while waiting and len(asked) - len(ends) - len(waiting) < NUM_AT_A_TIME + len(good):
            engine.add(waiting.pop())
            if len(waiting) % 10 == 0 and good:
                engine.add(good.pop())
        for delta in engine.step().deltas:
            if delta.finish_reason is not None:
                ends[delta.request_id] = delta
    assert set(ends) == asked
    outcomes: Counter[str] = Counter()
    for grammar in grammars:
        end = ends[grammar.seed]
        if end.error is not None:
            assert end.error.code is FaultCode.GRAMMAR, (grammar.seed, end.error)
        outcomes[outcome_of(str(end.error or ""))] += 1
    print(f"{NUM_GRAMMARS} grammars, seeds from 0: {dict(outcomes)}")
    # The generator would prove little if the library refused most, or if few met a limit.
    assert outcomes["refused"] <= NUM_GRAMMARS / 2
    assert outcomes["limit"] >= NUM_GRAMMARS / 4
    for number in range(NUM_GRAMMARS, NUM_GRAMMARS + NUM_GRAMMARS // 10):
        assert ends[number].finish_reason is FinishReason.STOP
    stats = engine.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    engine.check_integrity()
