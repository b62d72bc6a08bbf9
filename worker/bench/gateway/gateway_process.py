"""A gateway of the bench: `tokenbus gateway` with the environment's settings, bound to its parent.

Runs as `python -m tokenbus.worker.bench.gateway.gateway_process PARENT_PID [CORE]`, reads the
server's URL from standard input, for it may hold a password, and prints its port.
"""

from __future__ import annotations

import os
import sys

from tokenbus.producer.errors import ProducerError
from tokenbus.producer.gateway.command import run_gateway
from tokenbus.producer.gateway.settings import GatewaySettings
from tokenbus.worker.process.child import die_with_parent


def main(argv: list[str]) -> int:
    """Serve until told to stop; return the exit code."""
    die_with_parent(int(argv[0]))
    if len(argv) > 1:
        os.sched_setaffinity(0, {int(argv[1])})
    url = sys.stdin.readline().strip()
    try:
        settings = GatewaySettings.load(redis_url=url, gateway_port=0, log_level="warning")
        return run_gateway(settings, lambda port: print(port, flush=True))
    except ProducerError as error:
        print(f"tokenbus: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
