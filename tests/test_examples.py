"""The examples run as they stand, against processes that are started as their users start them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from patience import PATIENCE_S

from tokenbus.producer.server.embedded import start_private

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
_COMMAND = (
    "import sys; from tokenbus.producer.commands.cli import main; sys.exit(main(sys.argv[1:]))"
)


def test_arq_backend() -> None:
    """A backend on arq gets its texts, follows tokens under the same id and aborts a job."""
    server = start_private()
    environment = os.environ | {
        "TOKENBUS_REDIS_URL": server.url,
        "TOKENBUS_LOG_LEVEL": "error",
        "TOKENBUS_NULL_TOKENS_PER_S": "60",
    }
    with ExitStack() as stack:
        stack.callback(server.close)
        for command in (["worker", "--engine", "null"], ["control", "adapter"]):
            process = stack.enter_context(
                subprocess.Popen([sys.executable, "-P", "-c", _COMMAND, *command], env=environment)
            )
            stack.callback(process.kill)
        run = subprocess.run(
            [sys.executable, "-P", EXAMPLES / "arq_backend.py"],
            env=environment, capture_output=True, text=True, timeout=PATIENCE_S,
        )  # fmt: skip
    assert run.returncode == 0, run.stderr
    _text, tent, lamp, novel = run.stdout.splitlines()[-4:]
    for line, name in ((tent, "tent"), (lamp, "lamp")):
        assert re.match(rf"\w+-{name} length .*'completion_tokens': 48", line)
    assert re.match(r"\w+-novel aborted$", novel)
