"""Processes of a run are forked from one that has imported what its tests import."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import execnet
import pytest
import run_stem
from patience import PATIENCE_S

if TYPE_CHECKING:
    from pathlib import Path

_REPORT = """
import os, subprocess, sys
# A status tells that children can be waited for.
channel.send((os.getppid(), "wave" in sys.modules, subprocess.call(["false"])))
"""
PLANTED = """
import wave

def test_nothing():
    raise AssertionError
"""
WITH_GPU = """
import sys, types, wave

sys.modules["torch"] = types.SimpleNamespace(cuda=types.SimpleNamespace(is_available=lambda: True))
"""


@pytest.mark.processes
def test_process_is_forked_with_what_its_tests_import(tmp_path: Path) -> None:
    """It is like a Python that was executed; such a one takes its place where the stem is lost."""
    (tmp_path / "test_planted.py").write_text(PLANTED)
    group = execnet.Group(execmodel="main_thread_only")
    with run_stem.planted([tmp_path]) as stem:
        forked = group.makegateway("popen").remote_exec(_REPORT).receive()
        stem.process.kill()
        stem.process.wait()
        executed = group.makegateway("popen").remote_exec(_REPORT).receive()
        group.terminate(timeout=PATIENCE_S)
    assert forked == (stem.process.pid, True, 1)
    assert executed == (os.getpid(), False, 1)


@pytest.mark.processes
def test_nothing_is_forked_where_there_is_a_gpu(tmp_path: Path) -> None:
    """CUDA does not outlive a fork: each process imports for itself and finds its devices."""
    (tmp_path / "test_planted.py").write_text(WITH_GPU)
    group = execnet.Group(execmodel="main_thread_only")
    with run_stem.planted([tmp_path]):
        executed = group.makegateway("popen").remote_exec(_REPORT).receive()
        group.terminate(timeout=PATIENCE_S)
    assert executed == (os.getpid(), False, 1)
