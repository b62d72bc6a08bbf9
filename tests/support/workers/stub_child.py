"""A stand-in for a leashed command: `python -m workers.stub_child LEASH CORES ROLE …`.

steady  starts, and ends at the first SIGTERM
late    starts, and ends at the second one, as a worker does that drains for long
sour    starts, and ends with an error when it is asked to
pair    starts, and ends once both it and another were asked: each leaves a file, and waits for one
held    starts, and fails for good once a file exists
broken  cannot use what it was given
mortal  starts and crashes; once the file that it is given exists, it is steady
failing starts at first only, and crashes each time
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

STARTED = '{"event": "worker.started", "level": "info"}'


def _print(text: str) -> None:
    print(text, flush=True)


def _wait_for(num_signals: int) -> None:
    signals = {signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    _print(STARTED)
    for _ in range(num_signals):
        signal.sigwait(signals)
        _print("was asked")


def _wait_until_there(mark: Path) -> None:
    while not mark.exists():
        time.sleep(0.01)


def main(role: str, *rest: str) -> int:
    """Play a role and return the exit code."""
    if role == "steady":
        _wait_for(1)
    elif role == "late":
        _wait_for(2)
    elif role == "sour":
        _wait_for(1)
        _print("tokenbus: out of luck")
        return 1
    elif role == "pair":
        _wait_for(1)
        Path(rest[0]).touch()
        _wait_until_there(Path(rest[1]))
    elif role == "held":
        _print(STARTED)
        _wait_until_there(Path(rest[0]))
        return 1
    elif role == "broken":
        _print("tokenbus: model: no such folder")
        return 2
    else:
        mark = Path(rest[0])
        was_there = mark.exists()
        mark.touch()
        if role == "mortal" and was_there:
            _wait_for(1)
            return 0
        if not was_there:
            _print(STARTED)
        _print("tokenbus: out of luck")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[3:]))
