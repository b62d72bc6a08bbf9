"""The environment of child processes, which may compute on a CPU."""

from __future__ import annotations

import os

from tokenbus.producer.server.secret_env import without_secrets

# Rounds that an OpenMP thread spins at a barrier before it sleeps. The default of GNU's runtime is
# some milliseconds, during which a thread that another process pushed off its core is waited for
# with the core that it needs: on 2 cores beside two busy processes, 24 sequences ran at 19 tok/s
# with it, and at 73 with this.
_SPIN_COUNT = "4000"
# What multiprocessing's tracker says of locks whose process was killed: the kernel frees them.
_NO_LEAKS = "ignore:resource_tracker:UserWarning"


def compute_env() -> dict[str, str]:
    """Return this process's environment without secrets, its spin bounded unless the user chose.

    A child that is killed leaves nothing behind that its parent has to hear of.
    """
    env = {"GOMP_SPINCOUNT": _SPIN_COUNT, **without_secrets(os.environ)}
    chosen = env.get("PYTHONWARNINGS")
    env["PYTHONWARNINGS"] = f"{_NO_LEAKS},{chosen}" if chosen else _NO_LEAKS
    return env
