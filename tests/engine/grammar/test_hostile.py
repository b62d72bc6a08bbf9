"""Hostile grammars end their own requests; nobody else notices."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from models.hostile_grammars import NUM_FAMILIES, hostile_grammar, outcome_of
from models.tiny_model import TinyModel

from tokenbus.engine import LLM
from tokenbus.engine.errors import RequestRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.limits import GrammarLimits
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
    from pathlib import Path

    from tokenbus.engine.grammar.grammar import CompiledGrammar
    from tokenbus.engine.types import TokenDelta

NUM_GRAMMARS = 4 * NUM_FAMILIES
NUM_GOOD = NUM_GRAMMARS // 10
NUM_AT_A_TIME = 64
GOOD = GrammarSpec(GrammarKind.REGEX, "(yes|no)")
PLAIN = GrammarSpec(GrammarKind.REGEX, "a+")
# Each letter is a word of every length: the parser has ever more to put together.
AMBIGUOUS = GrammarSpec(
    GrammarKind.LARK, 'start: a\na: a b | b a | a a | "a"\nb: b a | a b | b b | "a"'
)


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Run a tiny model under limits that make the test short."""
    folder = TinyModel(tmp_path_factory.mktemp("tiny")).folder
    bounds: dict[str, Any] = {
        "grammar_compile_s": 0.15,
        "grammar_states": 1000,
        "grammar_items": 5000,
    }
    running = LLM(folder, num_pages=400, max_num_seqs=48, **bounds)
    yield running
    running.close()


def _request(number: int, spec: GrammarSpec, tenant: str) -> Request:
    params = SamplingParams(max_tokens=12, temperature=1.0, seed=number, grammar=spec)
    return Request(number, (1, 2, 3), params, tenant=tenant)


def _ends(llm: LLM, requests: list[Request]) -> dict[int, TokenDelta | RequestRejected]:
    """Run requests, some at a time, to their ends."""
    engine, ends = llm.engine, dict[int, Any]()
    num_added = 0
    while num_added < len(requests) or engine.has_work:
        while num_added < len(requests) and num_added - len(ends) < NUM_AT_A_TIME:
            request = requests[num_added]
            num_added += 1
            try:
                engine.add(request)
            except RequestRejected as error:
                ends[request.request_id] = error
        for delta in engine.step().deltas:
            if delta.finish_reason is not None:
                ends[delta.request_id] = delta
    return ends


def test_hostile_grammars_end_alone_beside_good_ones(llm: LLM) -> None:
    """Each ends by itself, the bad ones with their code; good ones between them all answer."""
    grammars = [hostile_grammar(seed) for seed in range(NUM_GRAMMARS)]
    requests = [_request(one.seed, one.spec, f"hostile-{one.seed % 3}") for one in grammars]
    for number in range(NUM_GRAMMARS, NUM_GRAMMARS + NUM_GOOD):
        requests.insert(11 * (number - NUM_GRAMMARS), _request(number, GOOD, "good"))
    ends = _ends(llm, requests)
    assert len(ends) == len(requests)
    outcomes: Counter[str] = Counter()
    for grammar in grammars:
        end = ends[grammar.seed]
        error: Any = end if isinstance(end, RequestRejected) else end.error
        code = "grammar" if error is end else error and error.code
        assert code in (None, "grammar", FaultCode.GRAMMAR), (grammar.seed, error)
        outcomes[outcome_of(str(error or ""))] += 1
    print(f"{NUM_GRAMMARS} grammars, seeds from 0: {dict(outcomes)}")
    # The generator would prove little if the library refused most, or if few met a limit.
    assert outcomes["refused"] <= NUM_GRAMMARS / 2
    assert outcomes["limit"] >= NUM_GRAMMARS / 4
    for number in range(NUM_GRAMMARS, NUM_GRAMMARS + NUM_GOOD):
        good: Any = ends[number]
        assert good.finish_reason is FinishReason.STOP
    stats = llm.stats()
    assert stats.free_pages + stats.evictable_pages == stats.num_pages - 1
    llm.engine.check_integrity()


def test_long_forced_runs_hold_up_no_step(tmp_path: Path) -> None:
    """Sixteen that come to one at once cost the engine's thread a fraction of what they take."""
    long = GrammarSpec(GrammarKind.CHOICE, json.dumps([f"a{'to be or not to be, ' * 600}", *"bcd"]))
    llm = LLM(TinyModel(tmp_path).folder, num_pages=100, max_num_seqs=16, grammar_token_ms=5000)
    try:
        [first] = llm.tokenizer.encode("a", add_special_tokens=False)
        matcher = _compiled(llm, long).matcher([first])
        begins = time.thread_time()
        run = matcher.forced_tokens()
        alone_s = time.thread_time() - begins
        # What the first step of all takes is no grammar's.
        llm.generate("x", max_tokens=2, progress=False)
        params = SamplingParams(max_tokens=5, temperature=0.0, logit_bias={first: 100.0})
        params = replace(params, grammar=long)
        for number in range(100, 116):
            llm.engine.add(Request(number, (1, 2, 3), params))
        steps_s, told = list[float](), Counter[int]()
        while llm.engine.has_work:
            begins = time.thread_time()
            deltas = llm.engine.step().deltas
            steps_s.append(time.thread_time() - begins)
            for delta in deltas:
                assert delta.finish_reason in (None, FinishReason.LENGTH)
                at = told[delta.request_id]
                assert [first, *run][at : at + len(delta.token_ids)] == list(delta.token_ids)
                told[delta.request_id] += len(delta.token_ids)
    finally:
        llm.close()
    assert set(told.values()) == {5}
    assert len(run) > 1000
    # Sixteen take the engine's thread as long as one alone, or less; made in it they took 31 times.
    assert max(steps_s) < 8 * alone_s


def test_tokens_that_take_long_to_accept_hold_up_no_step(tmp_path: Path) -> None:
    """Of an ambiguous grammar the engine's thread accepts none that are more than microseconds."""
    llm = LLM(TinyModel(tmp_path).folder, num_pages=100, max_num_seqs=8, grammar_token_ms=5000)
    num_rows, num_tokens = 3, 72
    try:
        [drawn] = llm.tokenizer.encode("a", add_special_tokens=False)
        matcher = _compiled(llm, AMBIGUOUS).matcher()
        alone_s = 0.0
        for _ in range(num_tokens):
            begins = time.thread_time()
            matcher.accept(drawn)
            alone_s += time.thread_time() - begins
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0, logit_bias={drawn: 100.0})
        spent_s = list[float]()
        for first, grammar in ((100, PLAIN), (200, AMBIGUOUS)):
            for number in range(first, first + num_rows):
                asked = replace(params, grammar=grammar)
                llm.engine.add(Request(number, (1, 2, 3), asked, tenant=f"{number % 2}"))
            told = Counter[int]()
            begins = time.thread_time()
            while llm.engine.has_work:
                for delta in llm.engine.step().deltas:
                    assert delta.error is None
                    assert set(delta.token_ids) <= {drawn}
                    told[delta.request_id] += len(delta.token_ids)
            spent_s.append(time.thread_time() - begins)
            assert set(told.values()) == {num_tokens}
    finally:
        llm.close()
    assert spent_s[1] - spent_s[0] < num_rows * alone_s / 2


def test_others_run_while_a_token_is_accepted(tmp_path: Path) -> None:
    """The interpreter's lock is free meanwhile, in whatever thread it is done."""
    llm = LLM(TinyModel(tmp_path).folder, num_pages=20, grammar_token_ms=5000)
    switch_s = sys.getswitchinterval()
    has_begun, is_over = threading.Event(), threading.Event()
    try:
        [drawn] = llm.tokenizer.encode("a", add_special_tokens=False)
        preparer = llm.engine._constrained._ready_preparer()
        matcher = preparer._compiler.compile(AMBIGUOUS).matcher()
        for _ in range(80):
            matcher.accept(drawn)
        matcher.mask()

        def accept() -> None:
            has_begun.set()
            for _ in range(20):
                matcher.accept(drawn)
            is_over.set()

        # The lock is never asked back: who waits has it once it is given away.
        sys.setswitchinterval(100.0)
        thread = threading.Thread(target=accept)
        thread.start()
        has_begun.wait()
        was_over = is_over.is_set()
        thread.join()
    finally:
        sys.setswitchinterval(switch_s)
        llm.close()
    assert not was_over


def _compiled(llm: LLM, spec: GrammarSpec) -> CompiledGrammar:
    """Compile a grammar for the model of an engine, beside it."""
    limits = llm.engine.limits
    of_grammar = GrammarLimits(token_ms=5000)
    compiler = GrammarCompiler(llm.tokenizer, limits.vocab_size, limits.eos_token_ids, of_grammar)
    return compiler.compile(spec)
