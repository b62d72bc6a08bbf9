"""The process of a follower: a rank other than 0, with its slice of the model and of each page.

It runs as `python -m tokenbus.engine.parallel.follower PARENT_PID MEMORY SOCKET`, the descriptors
of the group memory and of the socket to rank 0, with which it ends. It tells rank 0 why it fails.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import traceback

from tokenbus.engine.build import load_for, runner_for
from tokenbus.engine.child_process import begin_as_child, send_message
from tokenbus.engine.errors import EngineError
from tokenbus.engine.parallel.following import FollowingGroup


def serve(group: FollowingGroup) -> None:
    """Load this rank's part and follow. Raises: what ends it, ConnectionError if that is rank 0."""
    group.meet()
    loaded = load_for(group.config, group=group)
    group.follow(runner_for(loaded, group.config, group.sampling))


def main(argv: list[str]) -> int:
    """Serve until rank 0 hangs up."""
    begin_as_child(int(argv[0]))
    sock = socket.socket(fileno=int(argv[2]))
    try:
        serve(FollowingGroup(int(argv[1]), sock))
    except ConnectionError:
        return 0
    except Exception as error:
        # The process boundary: what was raised on purpose needs no trace, the rest is a bug.
        if not isinstance(error, EngineError):
            traceback.print_exc()
        with contextlib.suppress(OSError):
            send_message(sock, ["failed", type(error).__name__, str(error)])
    return 1


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads of libraries that still wait for other ranks are not waited for.
    os._exit(status)
