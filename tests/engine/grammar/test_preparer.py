"""Grammars get ready beside the batch: tried once, kept within bounds, mended when stuck."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from tokenbus.engine.errors import GrammarRejected
from tokenbus.engine.grammar.grammar import GrammarCompiler
from tokenbus.engine.grammar.grammar_cache import GrammarCache
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.preparer import FailedGrammar, GrammarPreparer, ReadyGrammar
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

    from tokenbus.engine.grammar.grammar import GrammarMatcher

GOOD = GrammarSpec(GrammarKind.REGEX, "(yes|no)")
# Most outputs are short; those that begin with an x reach a limit of the library.
TRAP = GrammarSpec(GrammarKind.REGEX, "[a-w]{1,4}|x(.{1,500}){1,500}")
BAD = GrammarSpec(GrammarKind.LARK, "start: start")


@pytest.fixture(scope="module")
def preparer(tokenizer: PreTrainedTokenizerFast) -> Iterator[GrammarPreparer]:
    """Give a preparer for a tokenizer of few tokens."""
    made = GrammarPreparer(tokenizer, len(tokenizer), (0,), GrammarLimits())
    yield made
    made.close()


def ready(preparer: GrammarPreparer, spec: GrammarSpec, tenant: str = "a") -> GrammarMatcher:
    """Prepare a grammar that is good and return its matcher."""
    outcome = preparer.prepare(spec, tenant, 1, []).result()
    assert isinstance(outcome, ReadyGrammar), outcome
    return outcome.matcher


def _fail(*_: object) -> None:
    pytest.fail("tried again")


def test_known_grammar_is_not_tried_again(
    preparer: GrammarPreparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sequences with the same grammar share its compilation, whoever asks."""
    first = ready(preparer, GOOD)
    monkeypatch.setattr(preparer._prober, "try_grammar", _fail)
    assert ready(preparer, GOOD, "b").source is first.source


def test_known_grammar_stands_ready_at_its_start(
    preparer: GrammarPreparer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who asks for it next has matcher and mask at once, without a thread; not of a new one."""
    labels = GrammarSpec(GrammarKind.CHOICE, json.dumps(["spam", "no spam"]))
    assert preparer.at_start(labels, "a") is None
    first = ready(preparer, labels)
    monkeypatch.setattr(preparer._mask_threads, "submit", _fail)
    known = preparer.at_start(labels, "b")
    assert known is not None
    assert known.mask is first.mask()
    assert known.matcher is not first
    assert known.matcher.source is first.source


def test_refusal_is_a_value_and_is_remembered_for_a_while(preparer: GrammarPreparer) -> None:
    """A bad grammar fails each time with the same reason, the second time without a trial."""
    first = preparer.prepare(BAD, "a", 1, []).result()
    assert isinstance(first, FailedGrammar)
    assert "nothing can satisfy it" in first.reason
    assert preparer._refusals.get(BAD) == first.reason
    assert preparer.prepare(BAD, "a", 1, []).result() == first
    assert preparer._cache.get(BAD, "a") is None


def break_trap(matcher: GrammarMatcher, tokenizer: PreTrainedTokenizerFast) -> None:
    """Lead a matcher of the trap into the limit of the library."""
    (token_id,) = tokenizer.encode("x", add_special_tokens=False)
    with suppress(GrammarRejected):
        for _ in range(500):
            matcher.accept(token_id)
            matcher.mask()
    assert matcher.is_broken


def test_grammar_that_one_sequence_broke_is_whole_for_the_next(
    preparer: GrammarPreparer, tokenizer: PreTrainedTokenizerFast
) -> None:
    """What one output led to a limit is compiled anew for those who come later."""
    first = ready(preparer, TRAP)
    assert preparer.at_start(TRAP, "b") is not None
    break_trap(first, tokenizer)
    assert preparer.at_start(TRAP, "b") is None
    later = ready(preparer, TRAP, "b")
    assert later.source is not first.source
    later.mask()


def test_running_sequence_goes_on_after_another_broke_their_grammar(
    preparer: GrammarPreparer, tokenizer: PreTrainedTokenizerFast
) -> None:
    """A fresh compilation stands where the stuck one was, and masks."""
    running, hostile = ready(preparer, TRAP), ready(preparer, TRAP, "b")
    ids = tokenizer.encode("ab", add_special_tokens=False)
    for token_id in ids:
        running.accept(token_id)
    break_trap(hostile, tokenizer)
    with pytest.raises(GrammarRejected):
        running.mask()
    outcome = preparer.prepare_anew(TRAP, "a", 1, ids, running.source).result()
    assert isinstance(outcome, ReadyGrammar)
    assert outcome.matcher.is_accepting
    assert preparer._cache.get(TRAP, "a") is not hostile.source


def test_full_cache_drops_the_grammars_of_the_one_who_filled_it(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """A tenant's flood of grammars leaves those of another where they are."""
    compiled = GrammarCompiler(tokenizer, len(tokenizer), (0,)).compile(GOOD)
    cache = GrammarCache(max_grammars=8)
    cache.put(GOOD, "quiet", compiled, 1000)
    for number in range(50):
        cache.put(GrammarSpec(GrammarKind.REGEX, f"a{number}"), "flood", compiled, 1000)
    assert len(cache) == 8
    assert cache.get(GOOD, "quiet") is compiled
    by_bytes = GrammarCache(max_bytes=10 << 20)
    by_bytes.put(GOOD, "quiet", compiled, 1 << 20)
    for number in range(50):
        by_bytes.put(GrammarSpec(GrammarKind.REGEX, f"a{number}"), "flood", compiled, 1 << 20)
    assert len(by_bytes) <= 10
    assert by_bytes.get(GOOD, "quiet") is compiled


def test_heavy_grammars_of_one_tenant_do_not_delay_a_light_one_of_another(
    preparer: GrammarPreparer,
) -> None:
    """A light grammar is ready while most of another tenant's heavy ones still wait."""
    heavy = [
        preparer.prepare(
            GrammarSpec(
                GrammarKind.JSON_SCHEMA,
                json.dumps(
                    {
                        "type": "object",
                        "properties": {
                            f"p{number}-{index}": {"type": "string", "format": "uri"}
                            for index in range(400)
                        },
                    }
                ),
            ),
            "heavy",
            0,
            [],
        )
        for number in range(6)
    ]
    light = preparer.prepare(GrammarSpec(GrammarKind.REGEX, "(up|down)"), "light", 2, [])
    assert isinstance(light.result(), ReadyGrammar)
    assert sum(future.done() for future in heavy) < len(heavy) / 2
    for future in heavy:
        future.cancel()
