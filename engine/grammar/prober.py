"""The prober process tries grammars, each in a child that the kernel ends at its limits.

It runs as `python -m tokenbus.engine.grammar.prober PARENT_PID FILE FD…`. FILE is the descriptor of
a file with vocabulary and limits, each FD that of a socket on which one trial at a time is asked
for. The process itself only forks: it loads the vocabulary once
and never touches a grammar, so that none can harm the next. A trial that takes long goes on with
what processor time others leave. The process ends when its sockets close or its parent does; its
children end with it.
"""

from __future__ import annotations

import json
import math
import os
import selectors
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from tokenbus.engine.child_process import (
    begin_as_child,
    die_with,
    receive_message,
    send_message,
)
from tokenbus.engine.grammar.limits import GrammarLimits
from tokenbus.engine.grammar.trial import (
    GrammarTrial,
    TrialStage,
    TrialVerdict,
    bound_this_process,
)
from tokenbus.engine.grammar.vocabulary import GrammarVocabulary
from tokenbus.engine.types import GrammarKind, GrammarSpec

if TYPE_CHECKING:
    from llguidance import LLTokenizer

_READ_BYTES = 1 << 16
# Most trials need 10 to 50 ms. What has taken longer than _QUICK_S yields to the engine's step, its
# worker and the short trials of others: beside one of them it has 0.3 of a core at this niceness.
# At 10 with 0.1 s a tenant's long trials took so long that its waiting jobs held all pages.
_QUICK_S, _YIELDING_NICENESS = 0.25, 4


@dataclass(slots=True)
class _Child:
    """A running trial: who asked, its process, and what it has written so far."""

    asker: socket.socket
    pid: int
    pipe: int
    yields_at: float
    gives_up_at: float
    said: bytearray = field(default_factory=bytearray)
    yields: bool = False
    timed_out: bool = False

    @property
    def due_at(self) -> float:
        """When it is looked after next, unless it ends before."""
        if self.timed_out:
            return math.inf
        return self.gives_up_at if self.yields else self.yields_at


class Prober:
    """Forks a child per trial and passes on what it says, or how it died."""

    def __init__(
        self, askers: list[socket.socket], tokenizer: LLTokenizer, limits: GrammarLimits
    ) -> None:
        self._tokenizer = tokenizer
        self._limits = limits
        self._children: dict[int, _Child] = {}
        self._askers = askers
        self._selector = selectors.DefaultSelector()
        for asker in askers:
            self._selector.register(asker, selectors.EVENT_READ)

    def run(self) -> None:
        """Serve until an asker hangs up."""
        try:
            while True:
                for key, _ in self._selector.select(self._patience_s()):
                    if isinstance(key.fileobj, socket.socket):
                        self._begin(key.fileobj)
                    else:
                        self._listen(self._children[key.fd])
                self._look_after_slow_ones()
        except ConnectionError:
            return
        finally:
            for child in self._children.values():
                os.kill(child.pid, signal.SIGKILL)

    def _patience_s(self) -> float | None:
        due_at = min((child.due_at for child in self._children.values()), default=math.inf)
        return None if due_at == math.inf else max(0.0, due_at - time.monotonic())

    def _begin(self, asker: socket.socket) -> None:
        kind, *parts = receive_message(asker)
        own_pid = os.getpid()
        try:
            pid, reading, writing = _fork_with_pipe()
        except OSError as error:
            reason = f"no process could be started to try it: {error.strerror}"
            send_message(asker, asdict(TrialVerdict(reason, is_lasting=False)))
            return
        if pid == 0:
            # The engine sees at once that the prober is gone, whatever a trial is at.
            for inherited in self._askers:
                inherited.close()
            spec = GrammarSpec(GrammarKind(kind), *parts)
            _try_in_child(spec, self._tokenizer, self._limits, writing, own_pid)
        os.close(writing)
        now = time.monotonic()
        child = _Child(asker, pid, reading, now + _QUICK_S, now + self._limits.wall_s)
        self._children[reading] = child
        self._selector.register(reading, selectors.EVENT_READ)

    def _listen(self, child: _Child) -> None:
        chunk = os.read(child.pipe, _READ_BYTES)
        if chunk:
            child.said += chunk
            return
        self._selector.unregister(child.pipe)
        os.close(child.pipe)
        del self._children[child.pipe]
        _, status = os.waitpid(child.pid, 0)
        send_message(child.asker, asdict(self._verdict(child, status)))

    def _verdict(self, child: _Child, status: int) -> TrialVerdict:
        """Return what a child found, or how it ended before it could say."""
        lines = child.said.split(b"\n")[:-1]
        last = json.loads(lines[-1]) if lines else ""
        if isinstance(last, dict):
            return TrialVerdict(**last)
        doing = last or TrialStage.COMPILE
        number = os.waitstatus_to_exitcode(status)
        if child.timed_out:
            reason = f"{doing} took more than {self._limits.wall_s:g} s"
        elif number == -signal.SIGPROF:
            reason = f"{doing} took more than {self._limits.compile_s:g} s of processor time"
        else:
            reason = f"{doing} ended its process ({number})"
        return TrialVerdict(reason, is_lasting=number == -signal.SIGPROF)

    def _look_after_slow_ones(self) -> None:
        """Lower the priority of trials that are not quick, and end those past their wall time."""
        now = time.monotonic()
        for child in self._children.values():
            if now < child.due_at:
                continue
            if child.yields:
                child.timed_out = True
                os.kill(child.pid, signal.SIGKILL)
            else:
                child.yields = True
                os.setpriority(os.PRIO_PROCESS, child.pid, _YIELDING_NICENESS)


def _fork_with_pipe() -> tuple[int, int, int]:
    """Fork; return the child's pid, 0 in the child, and the ends of a pipe to read and to write.

    Raises: OSError if the machine has no process or descriptor to give.
    """
    reading, writing = os.pipe()
    try:
        return os.fork(), reading, writing
    except OSError:
        os.close(reading)
        os.close(writing)
        raise


def _try_in_child(
    spec: GrammarSpec, tokenizer: LLTokenizer, limits: GrammarLimits, pipe: int, parent_pid: int
) -> None:
    """Try a grammar, write the verdict and end the process, whatever happens."""
    try:
        die_with(parent_pid)
        # Panics of the library are verdicts; nobody has to read them in a log.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        bound_this_process(limits)

        def say(what: TrialStage | TrialVerdict) -> None:
            said = asdict(what) if isinstance(what, TrialVerdict) else what
            line = memoryview(json.dumps(said).encode() + b"\n")
            while line:
                line = line[os.write(pipe, line) :]

        verdict = GrammarTrial(tokenizer, spec, limits, say).run()
        signal.setitimer(signal.ITIMER_PROF, 0)
        say(verdict)
        os._exit(0)
    finally:
        os._exit(1)


def main(argv: list[str]) -> int:
    """Read vocabulary and limits from the file, then serve the sockets."""
    begin_as_child(int(argv[0]))
    askers = [socket.socket(fileno=int(fd)) for fd in argv[2:]]
    with os.fdopen(int(argv[1]), encoding="utf-8") as file:
        file.seek(0)
        tokenizer, num_ids, eos_token_ids, limits = json.load(file)
    vocabulary = GrammarVocabulary(tokenizer, num_ids, tuple(eos_token_ids))
    Prober(askers, vocabulary.build(), GrammarLimits(**limits)).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
