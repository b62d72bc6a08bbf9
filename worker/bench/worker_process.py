"""A worker of the bench: `tokenbus worker` with settings from the environment, bound to its parent.

Runs as `python -m tokenbus.worker.bench.worker_process PARENT_PID` and reads the server's URL from
standard input, for it may hold a password. When the bench dies, however it does, no worker stays
behind.
"""

from __future__ import annotations

import sys

from tokenbus.engine.errors import EngineError
from tokenbus.producer.errors import ProducerError
from tokenbus.worker.errors import WorkerError
from tokenbus.worker.process.child import die_with_parent
from tokenbus.worker.settings import WorkerSettings
from tokenbus.worker.supervisor import run_worker


def main(argv: list[str]) -> int:
    """Run the worker until it is told to stop; return the exit code."""
    die_with_parent(int(argv[0]))
    try:
        return run_worker(WorkerSettings.load(redis_url=sys.stdin.readline().strip()))
    except (ProducerError, EngineError, WorkerError) as error:
        print(f"tokenbus: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
