"""Open files: a connection for each reader is more of them than most systems begin with."""

from __future__ import annotations

import contextlib

try:
    import resource
except ImportError:  # not a POSIX system
    resource = None  # type: ignore[assignment]


def raise_file_limit() -> int | None:
    """Allow this process as many open files as it may allow itself; return how many.

    None where the system has no such limit.
    """
    if resource is None:
        return None
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        # macOS says that there is no limit and refuses to have none.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
