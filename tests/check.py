"""Answer in about a minute whether a change holds: lint, types, and tests without processes.

`make check` runs this; `make test` has the rest. Each step prints its seconds, and all are run
whatever the ones before say.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine/scheduling", "engine/text", "producer", "worker")
PAGES = (
    "test_docs.py",
    "test_english.py",
    "test_errors_page.py",
    "test_import_directions.py",
    "test_names.py",
    "test_sizes.py",
)
# One process per core and one thread each; files stay together, because they share models.
PYTEST = ("-q", "-n", "auto", "--maxprocesses=4", "--dist=loadfile", "--tb=native")


def _steps() -> dict[str, list[str]]:
    python = [sys.executable, "-P"]
    has_cache = (ROOT / ".mypy_cache").is_dir()
    tests = [f"tests/{name}" for name in (*FOLDERS, *PAGES)]
    return {
        "lint": [*python, "-m", "ruff", "check"],
        "format": [*python, "-m", "ruff", "format", "--check"],
        "dead code": [*python, "-m", "vulture"],
        "scripts": [*python, "-m", "lua.lint"],
        f"types, {'warm' if has_cache else 'cold'} cache": [
            *python,
            "tests/typecheck.py",
            "packages",
        ],
        "tests": [*python, "-m", "pytest", *PYTEST, "-m", "not slow and not processes", *tests],
    }


def main() -> int:
    """Run every step; return the worst exit code."""
    paths = filter(None, ("tests/support", os.environ.get("PYTHONPATH")))
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    worst, started_at = 0, time.monotonic()
    for name, command in _steps().items():
        began_at = time.monotonic()
        code = subprocess.call(command, cwd=ROOT, env=environment)
        told = "passed" if code == 0 else f"failed with code {code}"
        print(f"check: {name} {told} in {time.monotonic() - began_at:.0f} s", flush=True)
        worst = max(worst, code)
    print(f"check: {time.monotonic() - started_at:.0f} s in all", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
