"""Child processes: how they are ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from tokenbus.worker.process.child import kill


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
