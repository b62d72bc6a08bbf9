"""How large the chaos is.

`CHAOS_JOBS` sets the jobs per case: unset, each case is a short row on the null engine and one
server; set, as by `make chaos`, a tiny real model runs on every kind of server. `CHAOS_SEED`
repeats a run.
"""

from __future__ import annotations

import os
import random
from typing import Any

import pytest

from tokenbus.producer.settings import ClientSettings

IS_SHORT = "CHAOS_JOBS" not in os.environ
NUM_JOBS = int(os.environ.get("CHAOS_JOBS", "8"))
SEED = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(1 << 31))


def number_of(name: str, short: int, full: int) -> int:
    """Return a number of a case: that of `CHAOS_<name>`, or one for the scale of the run."""
    return int(os.environ.get(f"CHAOS_{name}") or (short if IS_SHORT else full))


# The shortest lease there is, so that a death costs little time.
LEASE: dict[str, Any] = {"lease_ttl_s": 1, "renew_interval_s": 0.3, "call_timeout_s": 2}
# A client that rides out every outage of the matrix. Hundreds of readers that look after their jobs
# twice a second would be most of a case's load, so long rows do it as often as users' readers do.
PATIENT = ClientSettings(retry_for_s=120, silence_s=0.5 if IS_SHORT else 2)

long_row = pytest.mark.skipif(IS_SHORT, reason="part of make chaos only")
short_row = pytest.mark.skipif(not IS_SHORT, reason="make chaos has a longer row of it")
# Tokens are logged by the worker process itself, and by two processes of its own.
_WAYS = {"publishers0": 0, "publishers2": 2}
both_ways = pytest.mark.parametrize(
    "num_publishers",
    [pytest.param(num, id=way, marks=[long_row] if num else []) for way, num in _WAYS.items()],
    indirect=True,
)
# The same for cases that need processes to publish: they have no short row without.
publishers_too = pytest.mark.parametrize(
    "num_publishers",
    [pytest.param(num, id=way, marks=[] if num else [long_row]) for way, num in _WAYS.items()],
    indirect=True,
)
