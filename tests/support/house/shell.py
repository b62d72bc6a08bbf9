"""The shell blocks of the project's pages, and a shell in which a newcomer would type them.

A block is fenced or indented and begins with a command. The shell has an empty home and cache, and
nothing of the tester's environment but what finds this source tree.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Self

from patience import PATIENCE_S

ROOT = Path(__file__).resolve().parents[3]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "docs")
_SHELLS = ("", "sh", "bash", "console", "shell")
_COMMENT = re.compile(r"(^|\s)#\s.*")
_COMMAND = re.compile(
    r"(?:[A-Z_]+=\S+ )*(tokenbus|make|pip|python3?|docker|curl|node|\.?/?\S*bin/)\b"
)
# Of the tester's environment; pip's variables name its index.
_KEPT = re.compile(r"PATH|LANG|LC_.*|PYTHONPATH|PYTHONSAFEPATH|PIP_.*|SSL_CERT.*|TMPDIR")
_CHECK = re.compile(r"tokenbus (status|control check)\b|/(healthz|readyz)\b")
_STARTED = re.compile(
    r"\b(worker|control|adapter)\.started\b|/v1 serves |Uvicorn running on |Ready to accept conn"
)


@dataclass(frozen=True, slots=True)
class Block:
    """Commands of a page that stand together, continued lines joined."""

    page: str
    lines: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return how a test calls it."""
        return f"{self.page}: {self.lines[0]}"


@dataclass(frozen=True, slots=True)
class CodeBlock:
    """Code of a page, in one language."""

    page: str
    text: str


def blocks() -> list[Block]:
    """Return every shell block of the README and the docs."""
    return [block for file in _files() for block in blocks_of(file)]


def code_blocks(language: str) -> list[CodeBlock]:
    """Return every block of a language on the README and the docs, in their order."""
    return [
        CodeBlock(str(file.relative_to(ROOT)), "\n".join(body) + "\n")
        for file in _files()
        for kind, body in bodies_of(file.read_text().splitlines())
        if kind == language
    ]


def _files() -> list[Path]:
    files: list[Path] = []
    for name in PAGES:
        files += sorted((ROOT / name).glob("*.md")) if (ROOT / name).is_dir() else [ROOT / name]
    return files


def blocks_of(file: Path) -> list[Block]:
    """Return the shell blocks of a page, in its order."""
    page, made = str(file.relative_to(ROOT)), []
    for kind, body in bodies_of(file.read_text().splitlines()):
        joined = "\n".join(body).replace("\\\n", " ").splitlines()
        lines = tuple(filter(None, (_COMMENT.sub("", line).strip() for line in joined)))
        if kind in _SHELLS and lines and _COMMAND.match(lines[0]):
            made.append(Block(page, tuple(" ".join(line.split()) for line in lines)))
    return made


def bodies_of(lines: list[str]) -> list[tuple[str, list[str]]]:
    """Return the language and the lines of every block in a page's; an indented one has none."""
    found: list[tuple[str, list[str]]] = []
    is_fenced, before = False, ""
    for line in lines:
        if line.startswith("```"):
            is_fenced = not is_fenced
            if is_fenced:
                found.append((line[3:].strip(), []))
        elif is_fenced:
            found[-1][1].append(line)
        elif line.startswith("    "):
            if not before.startswith("    "):
                found.append(("", []))
            found[-1][1].append(line[4:])
        before = line
    return found


@dataclass(slots=True)
class Newcomer:
    """Types lines into a shell of their own; `given` replaces what only the writer's machine has.

    Services stay in the background once they say that they have started, and are stopped at the
    end; whatever else is typed has to end with code 0.
    """

    home: Path
    given: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    _services: list[subprocess.Popen[str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Move in: a home that is empty but for the command itself, which pip would install."""
        tools = self.home / "tools"
        tools.mkdir(parents=True)
        command = tools / "tokenbus"
        module = "tokenbus.producer.commands.cli"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m {module} "$@"\n')
        command.chmod(0o755)
        return self

    def __exit__(self, *_: object) -> None:
        for service in self._services:
            # With all that a line has started.
            with suppress(ProcessLookupError):
                os.killpg(service.pid, signal.SIGKILL)
            service.wait()

    @property
    def environment(self) -> dict[str, str]:
        """Return what the shell starts with."""
        kept = {name: value for name, value in os.environ.items() if _KEPT.fullmatch(name)}
        path = f"{self.home / 'tools'}:{Path(sys.executable).parent}:{kept.get('PATH', '')}"
        return kept | {"PATH": path, "HOME": str(self.home)} | self.variables

    def type(self, line: str, *, waits: bool = True) -> str:
        """Run a line and return what it printed; of a service until it has started.

        A line that is not waited for goes on in a terminal of its own.
        """
        for written, here in self.given.items():
            line = line.replace(written, here)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            code, said = self._run(line, waits=waits)
            if code in (None, 0):
                return said
            # Who checks a service that has just started asks again, as compose does.
            assert _CHECK.search(line), f"{line} ended with {code}:\n{said}"
            assert time.monotonic() < deadline, f"{line} ends with {code}:\n{said}"

    def _run(self, line: str, *, waits: bool) -> tuple[int | None, str]:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f"exec env {line}"],
            cwd=self.home, env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        self._services.append(process)
        assert process.stdout
        said = []
        for text in process.stdout if waits else ():
            said.append(text)
            if _STARTED.search(text):
                return None, "".join(said)
        return process.wait(timeout=PATIENCE_S) if waits else None, "".join(said)

    def leave(self) -> None:
        """Go to another terminal: nobody reads what the last service says from here on.

        It would stand still otherwise once the pipe is full.
        """
        Thread(target=deque, args=(self.last.stdout, 0), daemon=True).start()

    @property
    def last(self) -> subprocess.Popen[str]:
        """Return the process of the line that was typed last."""
        return self._services[-1]

    def stop(self) -> None:
        """Stop the services as an operator does; they end with code 0."""
        running = [service for service in self._services if service.poll() is None]
        for service in running:
            service.send_signal(signal.SIGINT)
        for service in running:
            service.communicate(timeout=PATIENCE_S)
            assert service.returncode == 0
