"""The engine's end of the prober process, which is started on first use and replaced if it dies."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, astuple
from threading import Event, Lock
from typing import TYPE_CHECKING, Any

from tokenbus.engine.child_process import receive_message, send_message
from tokenbus.engine.errors import EngineError
from tokenbus.engine.grammar.trial import TrialVerdict

if TYPE_CHECKING:
    from tokenbus.engine.grammar.limits import GrammarLimits
    from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
    from tokenbus.engine.types import GrammarSpec

# Beside the wall time of a trial: the start of the prober, on a machine that is busy, in seconds.
_START_S = 60.0
# Before the next attempt, then twice as long each time: a prober touches no grammar, so that what
# ends it is outside, and may end the next one too.
_FIRST_PAUSE_S = 0.05
_COMMAND = (sys.executable, "-P", "-m", "tokenbus.engine.grammar.prober")


class ProberLost(EngineError):
    """No prober process lives long enough to answer."""


class _TrialLane:
    """A socket on which one trial at a time is asked for.

    It is not closed under who waits on it: the next socket has its number, and a thread that was
    about to wait on this one would wait on that one, for an answer to what it has not asked there.
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._turn = Lock()

    def ask(self, message: Any) -> Any:
        """Send a message and return the answer. Raises: OSError, ValueError."""
        with self._turn:
            send_message(self._sock, message)
            return receive_message(self._sock)

    def close(self) -> None:
        """Close the socket; a waiter at its other end hears that this one is gone."""
        with self._turn:
            self._sock.close()


class ProberLink:
    """Asks for trials, one at a time in each of `num_lanes` lanes, a thread per lane."""

    def __init__(
        self, vocabulary: GrammarVocabulary, limits: GrammarLimits, num_lanes: int
    ) -> None:
        self._vocabulary = vocabulary
        self._limits = limits
        self._num_lanes = num_lanes
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._lanes: list[_TrialLane] = []
        self._closed = Event()

    def start(self) -> None:
        """Start the process unless it runs; it gets ready while its caller goes on."""
        self._running()

    def try_grammar(self, spec: GrammarSpec, lane: int) -> TrialVerdict:
        """Try a grammar and return the verdict, however often the process is killed meanwhile.

        Raises: ProberLost, when none has answered in twice the time of a start and a trial.
        """
        # Twice: after one that hung another has its time.
        gives_up_at, pause_s = time.monotonic() + 2 * self._patience_s, _FIRST_PAUSE_S
        while time.monotonic() < gives_up_at:
            process, lanes = self._running()
            if process is None:
                break
            try:
                return TrialVerdict(**lanes[lane].ask((spec.kind.value, *astuple(spec)[1:])))
            except (OSError, ValueError):
                self._discard(process)
            self._closed.wait(pause_s)
            pause_s *= 2
        raise ProberLost("the process in which grammars are tried does not live")

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._closed.set()
            process = self._process
        if process is not None:
            self._discard(process)

    @property
    def _patience_s(self) -> float:
        return self._limits.wall_s + _START_S

    def _running(self) -> tuple[subprocess.Popen[bytes] | None, list[_TrialLane]]:
        """Return the process and its lanes, started unless it runs; None once this is closed.

        Both in one step: another lane may find the process dead and discard it at any moment.
        """
        with self._lock:
            if self._process is None and not self._closed.is_set():
                self._spawn()
            return self._process, self._lanes

    def _spawn(self) -> None:
        pairs = [socket.socketpair() for _ in range(self._num_lanes)]
        with tempfile.TemporaryFile("w", encoding="utf-8") as file:
            vocabulary = self._vocabulary
            values = (vocabulary.tokenizer, vocabulary.num_ids, vocabulary.eos_token_ids)
            json.dump((*values, asdict(self._limits)), file)
            file.flush()
            theirs = [file.fileno(), *(pair[1].fileno() for pair in pairs)]
            self._process = subprocess.Popen(
                [*_COMMAND, str(os.getpid()), *map(str, theirs)],
                stdin=subprocess.DEVNULL,
                pass_fds=theirs,
                process_group=0,
            )
        self._lanes = []
        for ours, their_end in pairs:
            their_end.close()
            ours.settimeout(self._patience_s)
            self._lanes.append(_TrialLane(ours))

    def _discard(self, process: subprocess.Popen[bytes]) -> None:
        """End a process, unless another thread has replaced it already."""
        with self._lock:
            if self._process is not process:
                return
            self._process = None
            lanes, self._lanes = self._lanes, []
        process.kill()
        process.wait()
        for lane in lanes:
            lane.close()
