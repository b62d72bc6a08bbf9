"""Child processes: how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from tokenbus.worker.process.child import is_stopped, kill


def test_kill_leaves_the_status_of_a_child_that_has_ended_to_who_waits() -> None:
    """The loop would take a status that is gone for 255, and say so in the log."""
    child = subprocess.Popen([sys.executable, "-S", "-E", "-c", "raise SystemExit(7)"])
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    kill(child)
    assert os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1]) == 7
    child.returncode = 7


def test_kill_ends_a_child_at_once() -> None:
    """Also one that would sleep for ever."""
    child = subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(3600)"])
    kill(child)
    assert child.wait() == -signal.SIGKILL


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of it")
def test_stopped_child_is_told_from_one_that_sleeps() -> None:
    """A signal has stopped it; one that waits, or is gone, is not stopped."""
    child = subprocess.Popen([sys.executable, "-S", "-E", "-c", "import time; time.sleep(3600)"])
    assert not is_stopped(child.pid)
    child.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
    assert is_stopped(child.pid)
    child.kill()
    child.wait()
    assert not is_stopped(child.pid)
