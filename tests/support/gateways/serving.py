"""`tokenbus serve` for tests that stand outside: its address, until they are done."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

COMMAND = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli"]


@contextmanager
def serving(folder: Path, *words: str, **environment: str) -> Iterator[str]:
    """Run `tokenbus serve` on a free port; give its address, without `/v1`."""
    command = [*COMMAND, "serve", *words, "--port", "0", "--redis", f"embedded://{folder}"]
    env = os.environ | environment
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout
            found = next(filter(None, (re.match(r"(\S+)/v1 serves", x) for x in process.stdout)))
            yield found[1]
        finally:
            process.terminate()
            assert process.wait(PATIENCE_S) == 0
