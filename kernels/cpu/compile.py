"""Compilation of the C++ kernels, once for this machine: the result is kept in a cache folder."""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_COMPILERS = ("c++", "g++", "clang++")
_SOURCES = Path(__file__).parent
# No -ffast-math: it would fold the rounding trick in exp() away. Vectors are spelled out, so -O3
# brings little over -O2, and products and sums still become one instruction.
_FLAGS = ("-std=c++17", "-O3", "-fno-math-errno", "-fPIC", "-shared", "-fopenmp", "-w")
# It takes 10 s of one core; a machine that is this much slower has other troubles.
_TIMEOUT_S = 240
_MAX_LAST_WORDS = 400


class CompilerMissing(Exception):
    """The kernels cannot be compiled here; the message says why."""


def compiled_library(cache: Path, target: str | None = None) -> Path:
    """Return the shared library for this machine, compiling it into `cache` unless it is there.

    Several processes may call it at once: one compiles, and the others wait for it. `target` is
    the compiler's flag for a processor, by default that of this machine.
    Raises: CompilerMissing if there is no compiler or it fails.
    """
    arm = platform.machine() in ("aarch64", "arm64")
    target = target or ("-mcpu=native" if arm else "-march=native")
    flags = (*_FLAGS, target)
    library = cache / f"{_fingerprint(flags)}.so"
    if library.is_file():
        return library
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise CompilerMissing(f"there is no C++ compiler ({', '.join(_COMPILERS)})")
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _alone(cache):
            if not library.is_file():
                _compile(compiler, flags, library)
    except OSError as error:
        raise CompilerMissing(f"nothing can be compiled into {cache}: {error}") from error
    return library


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Keep other processes that compile into a folder waiting; a file system may know no locks."""
    handle = os.open(cache, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _compile(compiler: str, flags: tuple[str, ...], library: Path) -> None:
    """Compile the library; it appears whole, by one rename."""
    handle, name = tempfile.mkstemp(dir=library.parent, suffix=".tmp")
    os.close(handle)
    try:
        _run([compiler, *flags, str(_SOURCES / "library.cpp"), "-o", name])
        Path(name).replace(library)
    finally:
        Path(name).unlink(missing_ok=True)


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace",
            timeout=_TIMEOUT_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise CompilerMissing(f"{command[0]} took longer than {_TIMEOUT_S} s") from error
    if done.returncode:
        words = done.stderr.strip()[:_MAX_LAST_WORDS] or f"exit status {done.returncode}"
        raise CompilerMissing(f"{command[0]} failed: {words}")


def _fingerprint(flags: tuple[str, ...]) -> str:
    """Name what the library depends on: sources, flags and the instructions of this processor.

    A cache folder may be shared by machines of several kinds.
    """
    digest = hashlib.sha256("\0".join((*flags, platform.platform(), _instructions())).encode())
    for source in sorted((*_SOURCES.glob("*.h"), *_SOURCES.glob("*.cpp"))):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _instructions() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
