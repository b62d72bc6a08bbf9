"""The tokenizer of the worker process: what it costs to have one."""

from __future__ import annotations

import subprocess
import sys

import pytest
from patience import PATIENCE_S

_CODE = """
import sys
from tokenbus.worker.tokenizer import import_library, load_tokenizer
import_library(has_model=False)
load_tokenizer(None, 1000)
print("torch" in sys.modules)
"""


@pytest.mark.processes
def test_null_engines_tokenizer_needs_no_torch() -> None:
    """Its import takes longer than all the rest of a worker's start."""
    run = subprocess.run(
        [sys.executable, "-P", "-c", _CODE], capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert run.stdout == "False\n", run.stderr
