"""Processes of a run are forked from one that has imported what its tests import."""

from __future__ import annotations

import ast
import os
from typing import TYPE_CHECKING

import execnet
import pytest
import run_stem

if TYPE_CHECKING:
    from pathlib import Path

_REPORT = """
import os, subprocess, sys
# A status tells that children can be waited for.
channel.send((os.getppid(), "wave" in sys.modules, subprocess.call(["false"])))
"""
PLANTED = '''"""A text
for one that reads.
"""
import wave
from house.modules import parsed

def test_nothing():
    import colorsys
'''


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
        group.terminate(timeout=10)
    assert forked == (stem.process.pid, True, 1)
    assert executed == (os.getpid(), False, 1)


def test_imports_are_those_at_the_heads_of_files(tmp_path: Path) -> None:
    """The tests' own modules are not imported ahead, but what these import is."""
    (tmp_path / "test_planted.py").write_text(PLANTED)
    found = {ast.unparse(node) for node in run_stem.imports_of([tmp_path])}
    assert {"import wave", "import gc"} < found
    assert not {"import colorsys", "from house.modules import parsed"} & found
