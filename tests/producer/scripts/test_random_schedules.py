"""The real scripts under random schedules: a faulty network, deaths, pauses, restarts, rollbacks.

Workers, clients and the real reader act concurrently on a real server; what each call meets is
drawn. In the end everything heals, and nothing may be lost, doubled, charged twice or left behind.
`make chaos` runs twenty thousand of them.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING, Any

import pytest
from matrix import SERVER_KINDS
from storm.audit import Change, Violation, audited_scripts
from storm.run import Broken, check_jobs, first_broken, play
from storm.wire import Wire
from storm.worker import IN_ONE_TURN
from storm.world import World

from tokenbus.producer.contract.keys import Keys
from tokenbus.producer.scripts.completing import Retention

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tokenbus.producer.server.embedded import EmbeddedServer

NUM_SCHEDULES = 24
# Every rule below is missed within the first five dozen schedules, see docs/failures.md.
NUM_TRIES = 60
# Where the search for a rule begins that those before do not miss, or not soon.
FIRST = {
    "the marker carries the index (R3)": 10,
    "a terminal entry is never replaced (R4)": 1,
    "one crash finds nobody guilty (R5)": 16,
    "the commit sets no short TTL (R9)": 17,
    "a whole answer sets no short TTL (R9)": 22,
    "the tick hands out what has to end (R10)": 1,
    "the tick sees what is done (R10)": 4,
    "a cancel is answered again (R11)": 3,
}
# Seeds of schedules without restarts, ages and rollbacks, and with all of them.
CALM, ALL_WEATHERS = 0, 4
# A calm one whose jobs are completed in steps, and their logs kept.
IN_STEPS = 15
LOG_TTL_S = Retention().log_ms / 1000


def _no(broken: Broken | None) -> None:
    if broken is not None:
        pytest.fail(str(broken))


@pytest.mark.each_value
def test_no_schedule_loses_or_doubles_anything(
    server: EmbeddedServer, request: pytest.FixtureRequest
) -> None:
    """Whatever goes wrong, each job ends once and whole, its readers see it, and it is gone.

    Each kind of server has its share of the schedules.
    """
    turn = SERVER_KINDS.index(request.node.callspec.params["server"])
    _no(first_broken(str(server.socket_path), range(turn, NUM_SCHEDULES, len(SERVER_KINDS))))


@pytest.fixture
def make_world(private_server: EmbeddedServer) -> Iterator[Callable[[int], World]]:
    """Give a maker of worlds by seed, whose scripts have the schedule's clock."""
    made: list[World] = []

    def make(seed: int) -> World:
        made.append(World(str(private_server.socket_path), f"storm{uuid.uuid4().hex[:12]}", seed))
        return made[-1]

    with audited_scripts():
        yield make
        for world in made:
            world.close()


def test_a_seed_is_one_schedule_however_slow_the_machine(
    make_world: Callable[[int], World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a seed has found is found again: nothing depends on how long a call takes."""
    fast, slow = make_world(ALL_WEATHERS), make_world(ALL_WEATHERS)
    _no(play(fast))
    run = Wire.run

    def run_slowly(wire: Wire, *args: Any) -> Any:
        time.sleep(0.001)
        return run(wire, *args)

    monkeypatch.setattr(Wire, "run", run_slowly)
    _no(play(slow))
    told = [[line.replace(w.pool, "pool") for line in w.network.trace] for w in (fast, slow)]
    assert told[0] == told[1]


def test_log_that_has_expired_counts_for_what_it_held(make_world: Callable[[int], World]) -> None:
    """A job may have ended long before a schedule does; its log is judged when it goes."""
    world = make_world(CALM)
    _no(play(world))
    world.pass_time(LOG_TTL_S)
    assert world.audit.buried == set(world.clients.accepted)
    asyncio.run(check_jobs(world))


def test_log_that_expires_without_its_end_is_a_violation(
    make_world: Callable[[int], World],
) -> None:
    """An end that goes missing is noticed, though nothing is left of the job afterwards."""
    world = make_world(IN_STEPS)
    _no(play(world))
    key = Keys(world.pool).log(world.clients.accepted[0])
    [(end, _)] = world.network.wire.run("XREVRANGE", key, "+", "-", "COUNT", 1)
    world.network.wire.run("XDEL", key, end)
    with pytest.raises(Violation, match="not one terminal entry"):
        world.pass_time(LOG_TTL_S)


RULES = {
    "takeover stops at a terminal entry (R2)": Change(
        "takeover", "if tail and tail.ended then", "if false then"
    ),
    "a begin that finds a log says so (R2)": Change(
        "begin", "return what_stands(log, epoch, worker, start)", "return"
    ),
    "the marker carries the index (R3)": Change(
        "takeover", "local last = tail and tail.to or 0", "local last = 0"
    ),
    "a terminal entry is never replaced (R4)": Change(
        "end", "elseif tail and tail.ended then", "elseif false then"
    ),
    "a flag survives its owner (R5)": Change(
        "requeue", "if record[4] == 'cancel' then", "if false then"
    ),
    "one crash finds nobody guilty (R5)": Change(
        "requeue", "elseif crashed and attempts >= max_attempts then", "elseif crashed then"
    ),
    "who dies alone, again, is found guilty (R5)": Change(
        "requeue", "  if suspected == 1 then", "  if false then"
    ),
    "the commit sets no short TTL (R9)": Change(
        "end", "redis.call('PEXPIRE', log, ttl_ms)", "redis.call('PEXPIRE', log, 120000)"
    ),
    "a whole answer sets no short TTL (R9)": Change(
        "begin", "redis.call('PEXPIRE', log, ttl_ms)", "redis.call('PEXPIRE', log, 120000)"
    ),
    "a job is completed once (R9)": Change(
        "complete_many", "local kept = { 'state', 'done',", "local kept = { 'state', record[1],"
    ),
    "the tick hands out what has to end (R10)": Change(
        "tick", "endings[#endings + 1] = ending_of(job)\n  else", "else"
    ),
    "the tick sees what is done (R10)": Change("tick", "record[2] == 'done' and 1 or 0", "0"),
    "a cancel is answered again (R11)": Change(
        "cancel", "if state ~= 'ending' then", "if state == 'ending' then return { 'done' } else"
    ),
    "a job is charged once": Change("pull", "(tonumber(record[6]) or 0) > 0", "false"),
}


# A log that is gone counts for nothing, though its result is there.
NO_STAND_IN = Change("end", "return tail_of_result(", "return nil and tail_of_result(")


def _is_violation(broken: Broken | None) -> None:
    """A promise was broken; a schedule that could not be run shows nothing."""
    assert broken is not None
    assert isinstance(broken.error, Violation), broken


def test_rule_whose_line_is_gone_is_noticed(private_server: EmbeddedServer) -> None:
    """A change that no script has a line for stops the run, and counts as no broken schedule."""
    path = str(private_server.socket_path)
    for change in (Change("pull", "no such line", ""), Change("pull", "local", "")):
        with pytest.raises(ValueError, match=r"pull\.lua has"):
            first_broken(path, range(1), (change,))


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_of_the_scripts_is_needed(private_server: EmbeddedServer, rule: str) -> None:
    """With a rule of the protocol switched off, some schedule breaks a promise."""
    path = str(private_server.socket_path)
    # On one server no record is done while its job lies in `ending`.
    skips = {IN_ONE_TURN} if rule.startswith("the tick sees what is done") else set()
    first = FIRST.get(rule, 0)
    tries = range(first, first + NUM_TRIES)
    _is_violation(first_broken(path, tries, (RULES[rule],), frozenset(skips)))


@pytest.mark.parametrize(
    ("rule", "seeds"),
    [
        ("unknown jobs", range(10, NUM_TRIES)),
        # An answer must outlive a log to do harm, which one schedule in some hundreds brings.
        ("stale answers", range(225, 600)),
        # A call must be on its way for longer than a result is kept: one schedule in 20,000.
        ("late begins", range(389_069_594, 389_069_595)),
    ],
)
def test_each_rule_of_the_callers_is_needed(
    private_server: EmbeddedServer, rule: str, seeds: range
) -> None:
    """Some rules are kept by workers and clients themselves.

    A worker that keeps what a lost pull brought holds jobs without pages for them (R6); a chain
    that goes on from an answer of long ago ends a job again whose log has expired (R10). While the
    result is kept, that stands in for the log, so the second is shown without it. A worker that
    does not say until when it may begin logs begins one again that is over and gone (R7).
    """
    path = str(private_server.socket_path)
    changes = (NO_STAND_IN,) if rule == "stale answers" else ()
    _is_violation(first_broken(path, seeds, changes, frozenset({rule})))
