"""Check the types of the packages and of the tests, each as it is imported.

`typecheck.py packages` leaves the tests out.

The folders at the top are installed as `tokenbus.*` by a mapping that type checkers do not follow,
so they look through a folder of links instead: `build/typing/tokenbus/<folder>`. The same folder
on PYTHONPATH runs the code without an installation.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "kernels", "producer", "worker")


def link_packages() -> Path:
    """Create or renew the folder of links and return its path."""
    links = ROOT / "build" / "typing" / "tokenbus"
    links.mkdir(parents=True, exist_ok=True)
    for folder in FOLDERS:
        link = links / folder
        if not link.is_symlink() or link.readlink() != ROOT / folder:
            link.unlink(missing_ok=True)
            link.symlink_to(ROOT / folder, target_is_directory=True)
    return links.parent


def main() -> int:
    """Run mypy over the packages, then over the tests; return the worse exit code."""
    link_packages()
    mypy = [sys.executable, "-P", "-m", "mypy"]
    parts: list[list[str]] = [[]] if sys.argv[1:] == ["packages"] else [[], ["tests"]]
    return max(subprocess.call([*mypy, *part], cwd=ROOT) for part in parts)


if __name__ == "__main__":
    sys.exit(main())
