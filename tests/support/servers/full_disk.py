"""A disk that is full whenever a test says so, for one server, without a mount or a root's rights.

A library that the server is started with answers its writes to files by ENOSPC while a flag is
there. It is compiled once per run; where there is no compiler, or the server takes no such library,
the test says so.
"""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from patience import PATIENCE_S

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
ssize_t write(int fd, const void *bytes, size_t size) {
    static ssize_t (*next)(int, const void *, size_t);
    const char *flag = getenv("TB_DISK_FULL");
    struct stat about;
    if (!next) next = (ssize_t (*)(int, const void *, size_t))dlsym(RTLD_NEXT, "write");
    if (flag && !fstat(fd, &about) && S_ISREG(about.st_mode) && !access(flag, F_OK)) {
        errno = ENOSPC;
        return -1;
    }
    return next(fd, bytes, size);
}
"""


class FullDisk:
    """The disk of one server, `binary` being the server that has it."""

    def __init__(self, folder: Path, binary: str) -> None:
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            pytest.skip("no C compiler makes a disk full")
        library, source = folder / "full.so", folder / "full.c"
        source.write_text(_SOURCE)
        command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"]
        subprocess.run(command, check=True, timeout=PATIENCE_S)
        self._flag = folder / "is-full"
        self.binary = str(folder / "server")
        script = f'#!/bin/sh\nLD_PRELOAD={library} TB_DISK_FULL={self._flag} exec {binary} "$@"\n'
        Path(self.binary).write_text(script)
        Path(self.binary).chmod(stat.S_IRWXU)

    def fill(self) -> None:
        """Take no more bytes."""
        self._flag.touch()

    def free(self) -> None:
        """Take bytes again."""
        self._flag.unlink()
