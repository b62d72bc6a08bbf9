"""The prober process: it may be killed, ends what runs on, and dies with its engine."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import selectors
import signal
import socket
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.engine.child_process import receive_message
from tokenbus.engine.grammar import prober_link
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.prober import Prober, _Child
from tokenbus.engine.grammar.prober_link import ProberLink, ProberLost, _TrialLane
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.grammar.watching.watched_answer import WatchedAnswer
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


def test_whole_of_a_constraint_is_tried(link: ProberLink) -> None:
    """That its output is followed, so that a list may be marked; and what its author has given."""
    unique = json.dumps({"type": "array", "items": {"type": "string"}, "uniqueItems": True})
    watched = WatchedAnswer(is_json=True).dump()
    spec = GrammarSpec(GrammarKind.JSON_SCHEMA, unique, 'before: "a"', watched)
    assert link.try_grammar(spec, 0).reason == ""
    assert "uniqueItems" in link.try_grammar(replace(spec, watched=""), 0).reason
    padded = 'start: "x"\n' + "// made of what its author gave\n" * 10_000
    made = GrammarSpec(GrammarKind.LARK, padded, given_bytes=10)
    assert link.try_grammar(made, 0).reason == ""
    assert "the limit is" in link.try_grammar(replace(made, given_bytes=None), 0).reason


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
        (GrammarSpec(GrammarKind.JSON_SCHEMA, "false"), "at #: nothing can satisfy it"),
        (regex("\ud800"), ""),
    ],
    ids=["regex", "empty", "lark", "recursion", "schema", "long", "deep", "false", "surrogate"],
)
def test_refusal_names_the_place(link: ProberLink, spec: GrammarSpec, place: str) -> None:
    """What is wrong with a grammar, and where, is in the reason."""
    verdict = link.try_grammar(spec, 0)
    assert verdict.reason
    assert place in verdict.reason


@pytest.mark.parametrize(
    ("inner", "words"),
    [
        ('{"enum": ["x", "\\ud800"]}', "it cannot be read: "),
        (f'{{"maximum": 1{"0" * 400}}}', "more digits than a bound may have"),
        ('{"minimum": 1e999}', "must be a number"),
    ],
    ids=["surrogate", "integer", "float"],
)
def test_schema_that_cannot_be_read_is_refused_at_its_place(
    link: ProberLink, inner: str, words: str
) -> None:
    """Python reads more than the library: the part that is too much is named."""
    source = f'{{"properties": {{"a": {{"const": 1}}, "b": {{"items": {inner}}}}}}}'
    verdict = link.try_grammar(GrammarSpec(GrammarKind.JSON_SCHEMA, source), 0)
    assert f"at #/properties/b/items: {words}" in verdict.reason


def test_number_that_is_none_of_json_is_refused_by_its_name(link: ProberLink) -> None:
    """NaN and the infinities are Python's."""
    for name in ("NaN", "Infinity", "-Infinity"):
        source = f'{{"type": "number", "minimum": {name}}}'
        verdict = link.try_grammar(GrammarSpec(GrammarKind.JSON_SCHEMA, source), 0)
        assert f"{name} is no number of JSON" in verdict.reason


@pytest.mark.skipif(sys.platform != "linux", reason="limits of another process are Linux's")
def test_prober_outlives_a_machine_that_has_nothing_to_give(link: ProberLink) -> None:
    """Without a descriptor no trial begins; the grammar may be tried again, and then passes."""
    link.try_grammar(GOOD, 0)
    assert link._process is not None
    pid = link._process.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, before[1]))
    verdict = link.try_grammar(GOOD, 0)
    assert "Too many open files" in verdict.reason
    assert not verdict.is_lasting
    resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert link.try_grammar(GOOD, 0).reason == ""
    assert link._process.pid == pid


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


def test_prober_outlives_a_trial_that_takes_too_long(link: ProberLink) -> None:
    """One that is not quick yields to others; past its wall time it is ended and waited for."""
    prober = Prober([], link._vocabulary.build(), LIMITS)
    with subprocess.Popen([sys.executable, "-P", "-c", "input()"], stdin=subprocess.PIPE) as trial:
        ours, theirs = socket.socketpair()
        begins = time.monotonic()
        child = prober._children[0] = _Child(ours, trial.pid, 0, begins, begins + PATIENCE_S)
        before = os.getpriority(os.PRIO_PROCESS, trial.pid)
        prober._look_after_slow_ones()
        assert os.getpriority(os.PRIO_PROCESS, trial.pid) > before
        assert trial.poll() is None
        child.gives_up_at = begins
        prober._look_after_slow_ones()
        prober._selector.register(theirs, selectors.EVENT_WRITE)
        assert prober._patience_s() is None
        assert prober._selector.select(prober._patience_s())
        assert trial.wait(PATIENCE_S) == -signal.SIGKILL
    ours.close()
    theirs.close()


def test_killed_prober_is_replaced(link: ProberLink) -> None:
    """Whoever kills the process, the next trial runs in another."""
    link.try_grammar(GOOD, 1)
    assert link._process is not None
    os.kill(link._process.pid, signal.SIGKILL)
    assert link.try_grammar(GOOD, 1).reason == ""


# Ends like one that somebody kills, so often as it is told, and then is a prober.
_KILLED_AT_START = """
import os, signal, sys
with open(sys.argv[1], "ab", buffering=0) as starts:
    starts.write(b".")
    if starts.tell() <= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
command = [sys.executable, "-P", "-m", "tokenbus.engine.grammar.prober"]
os.execv(sys.executable, [*command, *sys.argv[3:]])
"""


@pytest.fixture
def killed_at_start(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[int], ProberLink]]:
    """Give links whose probers are killed at so many starts."""
    made: list[ProberLink] = []

    def make(num_kills: int) -> ProberLink:
        program = (sys.executable, "-S", "-E", "-c", _KILLED_AT_START)
        command = (*program, str(tmp_path / "starts"), str(num_kills))
        monkeypatch.setattr(prober_link, "_COMMAND", command)
        monkeypatch.setattr(prober_link, "_FIRST_PAUSE_S", 0.001)
        made.append(ProberLink(GrammarVocabulary.of(tokenizer, len(tokenizer), (0,)), LIMITS, 1))
        return made[0]

    yield make
    for link in made:
        link.close()


def test_trial_outlives_every_kill_of_its_prober(
    killed_at_start: Callable[[int], ProberLink], tmp_path: Path
) -> None:
    """However often the process is killed before it answers, the grammar is not to blame."""
    assert killed_at_start(6).try_grammar(GOOD, 0).reason == ""
    assert len((tmp_path / "starts").read_bytes()) == 7


def test_prober_that_never_lives_is_given_up(
    killed_at_start: Callable[[int], ProberLink], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it is told, once it has had its time twice."""
    link, starts = killed_at_start(10_000), tmp_path / "starts"
    # On a busy machine one start alone may take longer than the first of these.
    for patience_s in (0.1, 1.0, 10.0, 100.0):
        monkeypatch.setattr(ProberLink, "_patience_s", patience_s)
        starts.write_bytes(b"")
        with pytest.raises(ProberLost, match="does not live"):
            link.try_grammar(GOOD, 0)
        if len(starts.read_bytes()) > 1:
            break
    assert len(starts.read_bytes()) > 1


def _pause(link: ProberLink) -> None:
    """Let the process read nothing, so that no more than a part of what it is sent can go out."""
    assert link._process is not None
    os.kill(link._process.pid, signal.SIGSTOP)


def _is_half_asked(link: ProberLink) -> bool:
    """Tell whether both lanes have sent something that nobody has read."""
    unread = [fcntl.ioctl(lane._sock, termios.TIOCOUTQ, bytes(4)) for lane in link._lanes]
    return all(int.from_bytes(each, sys.byteorder) for each in unread)


def _is_trying(link: ProberLink) -> bool:
    """Tell whether both lanes have a trial under way."""
    assert link._process is not None
    pid = link._process.pid
    return len(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="looks into other processes by /proc")
@pytest.mark.parametrize(
    ("source", "before", "is_reached"),
    [
        ('start: "NAME"', None, None),
        ('start: "NAME"\n' + "// more than a socket holds\n" * 50_000, _pause, _is_half_asked),
        (ENDLESS.source.replace("start: T", 'start: T "NAME"'), None, _is_trying),
    ],
    ids=["starting", "half_asked", "trying"],
)
def test_killed_prober_mixes_nothing_up(
    link: ProberLink,
    source: str,
    before: Callable[[ProberLink], None] | None,
    is_reached: Callable[[ProberLink], bool] | None,
) -> None:
    """At whatever it is killed, each lane gets the verdict on its own grammar from the next one."""
    if is_reached is not None:
        link.try_grammar(GOOD, 0)
    link.start()
    assert link._process is not None
    process = link._process
    if before is not None:
        before(link)
    sources = [source.replace("NAME", name) for name in ("ada", "bob")]
    specs = [GrammarSpec(GrammarKind.LARK, each, given_bytes=9) for each in sources]
    with ThreadPoolExecutor(2) as lanes:
        asked = [lanes.submit(link.try_grammar, spec, lane) for lane, spec in enumerate(specs)]
        ends_at = time.monotonic() + PATIENCE_S
        while is_reached is not None and not is_reached(link):
            assert time.monotonic() < ends_at
            # Both were tried while nobody looked.
            if all(each.done() for each in asked):
                asked = [
                    lanes.submit(link.try_grammar, spec, lane) for lane, spec in enumerate(specs)
                ]
        process.kill()
        found = [each.result(PATIENCE_S) for each in asked]
    assert link._process is not process
    if is_reached is _is_trying:
        assert [verdict.is_lasting for verdict in found] == [True, True]
        assert all("0.3 s of processor time" in verdict.reason for verdict in found)
    else:
        assert [verdict.reason for verdict in found] == ["", ""]
        assert ["ada" in found[0].grammar, "bob" in found[1].grammar] == [True, True]


def test_lane_is_not_closed_under_who_waits_on_it() -> None:
    """Its descriptor becomes nobody else's before the one who asked has heard of the end."""
    ours, theirs = socket.socketpair()
    lane = _TrialLane(ours)
    with ThreadPoolExecutor(2) as threads, theirs:
        asked = threads.submit(lane.ask, "what?")
        assert receive_message(theirs) == "what?"
        closed = threads.submit(lane.close)
        with pytest.raises(FutureTimeoutError):
            closed.result(0.05)
        assert ours.fileno() != -1
        theirs.close()
        assert isinstance(asked.exception(PATIENCE_S), ConnectionError)
        closed.result(PATIENCE_S)
    assert ours.fileno() == -1


_OWNER = """
import sys
from tokenbus.engine.grammar import prober_link
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.prober import Prober, _Child
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
