"""`tokenbus worker --replicas N`: the workers of a host under one command.

Each is a worker like any other: the queue knows nothing of the command that has started it.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import structlog

from tokenbus.producer.serving.child_supervisor import ChildSupervisor
from tokenbus.producer.serving.told_lines import heard_level
from tokenbus.worker import logs
from tokenbus.worker.replicas.placement import replica_commands

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenbus.worker.settings import WorkerSettings


class _LogTeller:
    """Puts what the workers log into the log of this process, each line with its replica."""

    def said(self, name: str, line: str) -> None:
        """Log a line of a worker's log."""
        with structlog.contextvars.bound_contextvars(replica=name):
            logs.relay(line, "replica.said")

    def restarts(self, name: str, reason: str, pause_s: float) -> None:
        """Log the end of a worker."""
        logs.get_logger().error("replica.ended", replica=name, reason=reason, restart_in_s=pause_s)


def run_replicas(settings: WorkerSettings, words: Sequence[str]) -> int:
    """Run a host's workers until told to stop; return 0 if all of them ended in order.

    `words` are those of the command of each, without what it has of the host. The first SIGTERM or
    SIGINT drains all at once, the second ends their drains, the third kills.
    Raises: SettingsInvalid; ChildFailed with the reason of a worker that did not start, or of the
        last of all that could not be kept running.
    """
    logs.configure(settings.log_level, settings.log_format)
    # All that workers say is heard here, and logged as far as it is asked for.
    said = ("--log-format=json", f"--log-level={heard_level(settings.log_level)}")
    commands = replica_commands(settings, (*words, *said))
    log = logs.get_logger()
    for name, command in commands.items():
        devices = command.environment.get("CUDA_VISIBLE_DEVICES")
        log.info("replica.placed", replica=name, devices=devices, cores=list(command.cores))
    # Arguments can be read by everyone on the machine.
    environment = os.environ | {"TOKENBUS_REDIS_URL": settings.redis_url}
    supervisor = ChildSupervisor(commands, environment, _LogTeller())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, supervisor.request_stop)
    supervisor.run(lambda: log.info("replicas.started", replicas=settings.replicas))
    log.info("replicas.stopped")
    return 0
