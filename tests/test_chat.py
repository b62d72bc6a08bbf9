"""`tokenbus chat`: a talk in a terminal and through a pipe, with a pool and with its own model."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from patience import PATIENCE_S

from tokenbus.producer.client.blocking import Client
from tokenbus.producer.commands.talk import Talk
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli"]
pytestmark = pytest.mark.processes


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """Run a server and a worker that makes its tokens up; give the URL."""
    server = start_private()
    env = os.environ | {"TOKENBUS_REDIS_URL": server.url, "TOKENBUS_NULL_TOKENS_PER_S": "200"}
    words = [*COMMAND, "worker", "--engine", "null"]
    with subprocess.Popen(words, env=env, stderr=subprocess.DEVNULL) as worker:
        yield server.url
        worker.kill()
    server.close()


class Terminal:
    """A command in a terminal of its own."""

    def __init__(self, *words: str, **environment: str) -> None:
        ours, theirs = pty.openpty()
        self._fd = ours
        self._said = ""
        self.process = subprocess.Popen(
            [*COMMAND, *words],
            stdin=theirs, stdout=theirs, stderr=theirs, close_fds=True,
            env=os.environ | environment, start_new_session=True,
            preexec_fn=lambda: _take_terminal(theirs),  # noqa: PLW1509 - nothing else runs yet
        )  # fmt: skip
        os.close(theirs)

    def type(self, text: str) -> None:
        r"""Type keys; \x03 is Ctrl-C, \x04 Ctrl-D."""
        os.write(self._fd, text.encode())

    def read_until(self, pattern: str) -> str:
        """Return what was printed up to the end of a pattern."""
        while (found := re.search(pattern, self._said, re.DOTALL)) is None:
            assert select.select([self._fd], [], [], PATIENCE_S)[0], f"{pattern}: {self._said!r}"
            try:
                piece = os.read(self._fd, 4096)
            except OSError:
                piece = b""
            assert piece, f"{pattern} was not printed, but {self._said!r}"
            self._said += piece.decode(errors="replace")
        said, self._said = self._said[: found.end()], self._said[found.end() :]
        return said


def _take_terminal(fd: int) -> None:
    import fcntl
    import termios

    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)


@pytest.mark.slow
def test_interrupt_stops_the_answer_and_not_the_talk(url: str) -> None:
    """Ctrl-C in an answer ends that, at the prompt it asks for the next; Ctrl-D ends the talk."""
    terminal = Terminal("chat", "--redis", url, "--max-tokens", "3000")
    terminal.read_until(">>> ")
    terminal.type("rain\n")
    terminal.read_until(r"rain\r\n.*?\w+ \w+ ")
    terminal.type("\x03")
    terminal.read_until("tokenbus: stopped")
    terminal.read_until(">>> ")
    terminal.type("\x03")
    terminal.read_until(r"/reset forgets .*?\r\n.*?>>> ")
    terminal.type("again\n")
    terminal.read_until(r"again\r\n.*?\w+ \w+ ")
    terminal.type("\x03")
    terminal.read_until("tokenbus: stopped")
    terminal.read_until(">>> ")
    terminal.type("\x04")
    assert terminal.process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_piped_lines_are_questions_and_orders(url: str) -> None:
    """Each line has its answer on standard output; orders and hints do not stand there."""
    lines = 'rain\n\n/reset\n/nonsense\n//path\n"""two\nlines"""\n/exit\nnever asked\n'
    run = subprocess.run(
        [*COMMAND, "chat", "--redis", url, "--max-tokens", "4"],
        input=lines, capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert len(run.stdout.splitlines()) == 3
    assert "the talk begins anew" in run.stderr
    assert "no such order" in run.stderr


@pytest.mark.slow
def test_chat_starts_a_model_of_its_own_and_leaves_nothing() -> None:
    """With a model alone there is no pool: server and worker come and go with the talk."""
    run = subprocess.run(
        [*COMMAND, "chat", "made-up", "--max-tokens", "4"],
        input="rain\n", capture_output=True, text=True, timeout=PATIENCE_S,
        env=os.environ | {"TOKENBUS_ENGINE": "null"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "worker: ready" in run.stderr
    assert len(run.stdout.split()) > 1


class _Noted:
    """A client that notes the messages of each job."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.asked: list[list[dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)

    def submit(self, **request: Any) -> Any:
        """Note the messages, and submit the job."""
        self.asked.append(list(request["messages"]))
        return self._client.submit(**request)


def test_turns_are_kept_until_they_are_forgotten(url: str) -> None:
    """Each question goes with all before it and their answers; a refused one is not kept."""
    with Client.connect(url) as client:
        noted: Any = _Noted(client)
        talk = Talk(noted, {"max_tokens": 4}, "Be brief.")
        assert talk.run(["one", "two"]) == 0
        assert not Talk(noted, {"max_tokens": -1}, None).ask("refused")
        assert talk.run(["/reset", "three", "/exit", "four"]) == 0
    told = [[message["role"] for message in asked] for asked in noted.asked]
    assert told == [
        ["system", "user"],
        ["system", "user", "assistant", "user"],
        ["user"],
        ["system", "user"],
    ]
    assert noted.asked[1][2]["content"]
