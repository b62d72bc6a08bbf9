"""What the engine process notes can be read back, token by token."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tokenbus.engine.null.null_config import NullConfig
from tokenbus.engine.null.null_engine import NullEngine
from tokenbus.engine.types import Request, SamplingParams
from tokenbus.worker.engine.step_log import StepLog, read_step_logs

if TYPE_CHECKING:
    from pathlib import Path


def test_each_token_has_the_time_of_its_step(tmp_path: Path) -> None:
    """Two requests, one of them resumed: times follow the steps, earlier tokens are unknown."""
    log = StepLog(str(tmp_path))
    engine = NullEngine(NullConfig())
    fresh = Request(1, (5,), SamplingParams(max_tokens=3, seed=11))
    resumed = Request(2, (5,), SamplingParams(max_tokens=4, seed=22), resumed_ids=((300, 301),))
    for number, request in enumerate((fresh, resumed)):
        engine.add(request)
        log.added(request, float(number))
    now = 10.0
    while engine.has_work:
        log.stepped(engine.step(), now)
        now += 1
    log.flush()
    found = read_step_logs(tmp_path)
    assert found[11].added_s == 0
    assert found[11].tokens_s.tolist() == [10, 11, 12]
    assert all(math.isnan(value) for value in found[22].tokens_s[:2])
    assert found[22].tokens_s[2:].tolist() == [10, 11]


def test_torn_file_is_read_up_to_the_tear(tmp_path: Path) -> None:
    """A process that was killed while it wrote loses its last record at most."""
    log = StepLog(str(tmp_path))
    engine = NullEngine(NullConfig())
    request = Request(1, (5,), SamplingParams(max_tokens=5, seed=11))
    engine.add(request)
    log.added(request, 0.0)
    for step in range(5):
        log.stepped(engine.step(), float(step))
    log.flush()
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-3])
    assert read_step_logs(tmp_path)[11].tokens_s.tolist() == [0, 1, 2, 3]


def test_request_that_comes_back_goes_on_in_its_row(tmp_path: Path) -> None:
    """Parked after two tokens of which one was logged: the second counts when it came again."""
    log = StepLog(str(tmp_path))
    engine = NullEngine(NullConfig())
    params = SamplingParams(max_tokens=3, seed=11)
    for request_id, resumed, now in ((1, (), 0.0), (2, ((300,),), 50.0)):
        request = Request(request_id, (5,), params, resumed_ids=resumed)
        engine.add(request)
        log.added(request, now)
        for step in (1.0, 2.0):
            log.stepped(engine.step(), now + step)
        engine.abort(request_id)
    log.flush()
    found = read_step_logs(tmp_path)
    assert found[11].added_s == 0
    assert found[11].tokens_s.tolist() == [1, 51, 52]
