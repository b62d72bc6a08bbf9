"""The examples run as they stand, against the commands that their users start."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from patience import PATIENCE_S
from workers.forked_command import forked_command

from tokenbus.producer.server.embedded import start_private

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


def test_arq_backend() -> None:
    """A backend on arq gets its texts, follows tokens under the same id and aborts a job."""
    server = start_private()
    environment = os.environ | {
        "TOKENBUS_REDIS_URL": server.url,
        "TOKENBUS_LOG_LEVEL": "error",
        # A novel lasts for 20 s: it is aborted once the others have ended.
        "TOKENBUS_NULL_TOKENS_PER_S": "20",
    }
    with ExitStack() as stack:
        stack.callback(server.close)
        for command in (("worker", "--engine", "null"), ("control", "adapter")):
            stack.enter_context(forked_command(*command, environment=environment))
        run = subprocess.run(
            [sys.executable, "-P", EXAMPLES / "arq_backend.py"],
            env=environment, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    _text, tent, lamp, novel = run.stdout.splitlines()[-4:]
    for line, name in ((tent, "tent"), (lamp, "lamp")):
        assert re.match(rf"\w+-{name} length .*'completion_tokens': 48", line)
    assert re.match(r"\w+-novel aborted$", novel)
