"""The life of child processes: their starts, crashes and ends, in the order that is promised."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from patience import PATIENCE_S

from tokenbus.producer.errors import ChildFailed
from tokenbus.producer.serving import child_supervisor, served_child
from tokenbus.producer.serving.child_supervisor import ChildSupervisor
from tokenbus.producer.serving.served_child import ChildCommand
from tokenbus.producer.serving.told_lines import LineTeller

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.processes

SUPPORT = str(Path(__file__).resolve().parents[2] / "support")


@pytest.fixture(autouse=True)
def _stub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start stand-ins in place of commands, and again without delay."""
    monkeypatch.setattr(served_child, "_MODULE", "workers.stub_child")
    monkeypatch.setattr(child_supervisor, "FIRST_PAUSE_S", 0.01)


class Listener:
    """What a supervisor told, with events for what a test waits for."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._changed = threading.Condition()

    def __call__(self, line: str) -> None:
        """Take a line."""
        with self._changed:
            self.lines.append(line)
            self._changed.notify_all()

    def wait_for(self, condition: Callable[[list[str]], bool]) -> None:
        """Wait until the lines are as they should be."""
        with self._changed:
            assert self._changed.wait_for(lambda: condition(self.lines), PATIENCE_S), self.lines


def _supervisor(tell: Listener, **roles: tuple[str, ...]) -> ChildSupervisor:
    """Make one of stand-ins; their parts are their names up to a line below."""
    paths = os.pathsep.join(filter(None, (SUPPORT, os.environ.get("PYTHONPATH"))))
    commands = {name: ChildCommand(words, name.split("_")[0]) for name, words in roles.items()}
    return ChildSupervisor(commands, os.environ | {"PYTHONPATH": paths}, LineTeller(tell))


def _run(supervisor: ChildSupervisor) -> threading.Thread:
    thread = threading.Thread(target=supervisor.run, daemon=True)
    thread.start()
    supervisor.wait_ready()
    return thread


def _started(supervisor: ChildSupervisor, errors: list[ChildFailed]) -> threading.Thread:
    """Run in a thread that notes how the run fails."""

    def run() -> None:
        try:
            supervisor.run()
        except ChildFailed as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_child_that_cannot_start_ends_the_whole_with_its_reason() -> None:
    """What one child says of its end is the reason, and the other does not outlive it."""
    tell = Listener()
    supervisor = _supervisor(tell, worker=("broken",), gateway=("steady",))
    with pytest.raises(
        ChildFailed, match="worker ended with code 2: model: no such folder"
    ) as told:
        supervisor.run()
    assert told.value.is_wrong_input
    assert not any(child.is_running for child in supervisor._children.values())
    with pytest.raises(ChildFailed, match="no such folder"):
        supervisor.wait_ready()


def test_child_that_crashes_is_started_again(tmp_path: Path) -> None:
    """A crash after the start costs a pause, and is told with its reason."""
    tell = Listener()
    supervisor = _supervisor(tell, worker=("mortal", str(tmp_path / "mark")))
    thread = _run(supervisor)
    tell.wait_for(lambda lines: lines.count("worker: ready") == 2)
    supervisor.request_stop()
    thread.join(PATIENCE_S)
    told = "worker ended with code 1: out of luck; it starts again in 0.01 s"
    assert told in tell.lines


def test_child_that_keeps_crashing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many crashes in a row the whole ends with the last reason."""
    monkeypatch.setattr(child_supervisor, "MAX_FAILURES", 2)
    tell = Listener()
    supervisor = _supervisor(tell, worker=("failing", str(tmp_path / "mark")))
    with pytest.raises(ChildFailed, match="out of luck"):
        supervisor.run()
    assert sum("starts again" in line for line in tell.lines) == 2


def test_stop_asks_one_child_after_the_other() -> None:
    """The gateway is asked once the worker has ended, so that its readers see their answers."""
    tell = Listener()
    supervisor = _supervisor(tell, worker=("steady",), gateway=("steady",))
    thread = _run(supervisor)
    supervisor.request_stop()
    thread.join(PATIENCE_S)
    assert [line for line in tell.lines if "asked" in line] == [
        "worker: was asked",
        "gateway: was asked",
    ]


def test_second_stop_is_urgent() -> None:
    """A child that drains is asked again, and the one behind it at the same time, once."""
    tell = Listener()
    supervisor = _supervisor(tell, worker=("late",), gateway=("steady",))
    thread = _run(supervisor)
    supervisor.request_stop()
    tell.wait_for(lambda lines: "worker: was asked" in lines)
    assert "gateway: was asked" not in tell.lines
    supervisor.request_stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert tell.lines.count("worker: was asked") == 2
    assert tell.lines.count("gateway: was asked") == 1


def test_children_of_one_part_are_asked_together(tmp_path: Path) -> None:
    """Workers drain at the same time; the gateway is asked once the last of them has ended."""
    tell = Listener()
    first, second = (("pair", str(tmp_path / name), str(tmp_path / other)) for name, other in
        (("a", "b"), ("b", "a")))  # fmt: skip
    supervisor = _supervisor(tell, worker_0=first, worker_1=second, gateway=("steady",))
    thread = _run(supervisor)
    supervisor.request_stop()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    asked = [line for line in tell.lines if "asked" in line]
    assert sorted(asked[:2]) == ["worker_0: was asked", "worker_1: was asked"]
    assert asked[2:] == ["gateway: was asked"]


def test_child_beside_others_is_tried_again_as_long_as_they_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that cannot be kept running ends nobody, until no other of its part can either."""
    monkeypatch.setattr(child_supervisor, "MAX_FAILURES", 2)
    tell = Listener()
    first, second = (("held", str(tmp_path / name)) for name in ("first", "second"))
    supervisor = _supervisor(tell, worker_0=first, worker_1=second)
    errors: list[ChildFailed] = []
    thread = _started(supervisor, errors)
    # One that fails before all are ready ends the whole.
    supervisor.wait_ready()
    (tmp_path / "first").touch()
    tell.wait_for(lambda lines: sum("starts again" in line for line in lines) > 4)
    assert not errors
    (tmp_path / "second").touch()
    thread.join(PATIENCE_S)
    assert str(errors[0]) == "worker_1 ended with code 1"


def test_child_that_does_not_end_in_order_is_told() -> None:
    """A drain that ends in an error, or is cut short, is no orderly end of the whole."""
    tell = Listener()
    supervisor = _supervisor(tell, worker=("sour",), gateway=("steady",))
    errors: list[ChildFailed] = []
    thread = _started(supervisor, errors)
    supervisor.wait_ready()
    supervisor.request_stop()
    thread.join(PATIENCE_S)
    assert str(errors[0]) == "worker ended with code 1: out of luck"
    assert tell.lines[-1] == "gateway: was asked"
