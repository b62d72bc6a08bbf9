"""The prober process: it may be killed, ends what runs on, and dies with its engine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.prober_link import ProberLink
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from transformers import PreTrainedTokenizerFast

LIMITS = GrammarLimits(compile_s=0.3)
GOOD = GrammarSpec(GrammarKind.REGEX, "(yes|no)")
# The complement of a pattern whose automaton is exponential in the count.
ENDLESS = GrammarSpec(
    GrammarKind.LARK,
    "start: T\nT: /(.*mhuf.{213}){1,4}/ & ~/t((((.?a?){0,47}b?){0,60}c?){0,33})/"
    " & ~/(?s:.*)xy.{30}/",
)


def regex(source: str) -> GrammarSpec:
    """Spell a pattern as a constraint."""
    return GrammarSpec(GrammarKind.REGEX, source)


@pytest.fixture(scope="module")
def link(tokenizer: PreTrainedTokenizerFast) -> Iterator[ProberLink]:
    """Give a prober with short limits."""
    made = ProberLink(GrammarVocabulary.of(tokenizer, len(tokenizer), (0,)), LIMITS, 2)
    yield made
    made.close()


def test_good_grammar_passes(link: ProberLink) -> None:
    """The verdict has the grammar in the form that is compiled, and no reason."""
    verdict = link.try_grammar(GOOD, 0)
    assert verdict.reason == ""
    assert "yes|no" in verdict.grammar


@pytest.mark.parametrize(
    ("spec", "place"),
    [
        (regex("ab(c"), "unclosed group"),
        (regex(r"[^\d\D]"), "nothing can satisfy it"),
        (GrammarSpec(GrammarKind.LARK, 'start: "a"\n  | c'), "unknown name"),
        (GrammarSpec(GrammarKind.LARK, "start: start"), "nothing can satisfy it"),
        (
            GrammarSpec(
                GrammarKind.JSON_SCHEMA,
                json.dumps(
                    {
                        "type": "object",
                        "properties": {"a/b": {"type": "array", "items": {"pattern": "(("}}},
                    }
                ),
            ),
            "#/properties/a~1b/items",
        ),
        (regex("x" * 300_000), "300000 bytes, the limit is 262144"),
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "[" * 100_000), "not JSON"),
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "false"), "allows nothing"),
        (regex("\ud800"), ""),
    ],
    ids=["regex", "empty", "lark", "recursion", "schema", "long", "deep", "false", "surrogate"],
)
def test_refusal_names_the_place(link: ProberLink, spec: GrammarSpec, place: str) -> None:
    """What is wrong with a grammar, and where, is in the reason."""
    verdict = link.try_grammar(spec, 0)
    assert verdict.reason
    assert place in verdict.reason


def test_grammar_without_end_is_ended_and_the_next_one_passes(link: ProberLink) -> None:
    """The kernel ends the trial at its processor time; the prober lives on."""
    link.try_grammar(GOOD, 0)
    assert link._process is not None
    pid = link._process.pid
    verdict = link.try_grammar(ENDLESS, 0)
    assert "0.3 s of processor time" in verdict.reason
    assert verdict.is_lasting
    assert link.try_grammar(GOOD, 0).reason == ""
    assert link._process.pid == pid


def test_killed_prober_is_replaced(link: ProberLink) -> None:
    """Whoever kills the process, the next trial runs in another."""
    link.try_grammar(GOOD, 1)
    assert link._process is not None
    os.kill(link._process.pid, signal.SIGKILL)
    assert link.try_grammar(GOOD, 1).reason == ""


_OWNER = """
import sys
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.prober_link import ProberLink
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.null.null_tokenizer import build_null_tokenizer
link = ProberLink(GrammarVocabulary.of(build_null_tokenizer(), 512, ()), GrammarLimits(), 2)
link.start()
print(link._process.pid, flush=True)
sys.stdin.read()
"""


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the closed socket ends it")
def test_prober_dies_with_its_engine() -> None:
    """A killed owner leaves no process behind."""
    owner = subprocess.Popen(
        [sys.executable, "-P", "-c", _OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.kill()
    owner.communicate()
    ends_at = time.monotonic() + PATIENCE_S
    while _is_alive(pid):
        assert time.monotonic() < ends_at
