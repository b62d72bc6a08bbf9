"""A command on a leash: a child process that ends when the one that started it has ended.

The leash is a pipe of which the parent has the other end and never writes to it. The kernel closes
that end whatever the parent dies of, on every system; the child then drains as after SIGTERM, and a
second later stops at once.

It runs as `python -m tokenbus.producer.commands.leashed LEASH CORES WORD…`: the pipe's descriptor,
and the cores that it may use, as numbers with commas or empty for all.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import NoReturn

from tokenbus.producer.commands.cli import main

_DRAIN_S = 1.0


def _follow(leash: int) -> None:
    """Wait for the end of the parent, then stop this process."""
    os.read(leash, 1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_DRAIN_S)
    os.kill(os.getpid(), signal.SIGTERM)


def run(leash: int, cores: list[int], words: list[str]) -> NoReturn:
    """Run a command of tokenbus until it ends, or until the leash does."""
    if cores:
        os.sched_setaffinity(0, cores)
    # No child of this process keeps it.
    os.set_inheritable(leash, False)
    threading.Thread(target=_follow, args=(leash,), name="leash", daemon=True).start()
    sys.exit(main(words))


if __name__ == "__main__":
    run(int(sys.argv[1]), [int(core) for core in sys.argv[2].split(",") if core], sys.argv[3:])
