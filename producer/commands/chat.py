"""`tokenbus chat`: a talk in the terminal, with a pool or with a model that is started for it."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from typing import TYPE_CHECKING

from tokenbus.producer.client.blocking import Client
from tokenbus.producer.commands.hints import server_url, tell
from tokenbus.producer.commands.talk import HELP, Talk
from tokenbus.producer.server.embedded import start_private
from tokenbus.producer.serving.child_supervisor import ChildSupervisor
from tokenbus.producer.serving.served_child import ChildCommand
from tokenbus.producer.serving.told_lines import LineTeller
from tokenbus.producer.terminal import is_terminal, say

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

_SHARED = ("max_tokens", "temperature", "top_k", "top_p", "seed", "stop", "tenant")
_PROMPT = ">>> "
# What opens and closes a question of several lines.
_FENCE = '"""'


def run_chat(args: argparse.Namespace) -> int:
    """Talk until the input ends; return 0 if every question was answered, else 1.

    Raises: ProducerError, ChildFailed if the model could not be started.
    """
    request = {name: value for name in _SHARED if (value := getattr(args, name)) not in (None, [])}
    is_own = args.model is not None and args.redis is None and args.pool is None
    if args.model is not None and not is_own:
        request["model"] = args.model
    with contextlib.ExitStack() as stack:
        if is_own:
            url = stack.enter_context(_own_worker(args.model))
        else:
            url = server_url(args.redis, "chat")
        client = stack.enter_context(Client.connect(url, args.pool or "default"))
        if is_terminal(sys.stdin):
            _tell_of_workers(client, args.pool or "default")
            tell(HELP)
        return Talk(client, request, args.system).run(_lines())


@contextlib.contextmanager
def _own_worker(model: str) -> Iterator[str]:
    """Run a server and a worker for this process alone, and give the server's URL.

    Raises: ChildFailed, EmbeddedUnavailable.
    """
    server = start_private()
    environment = os.environ | {"TOKENBUS_REDIS_URL": server.url}
    words = ("worker", "--model", model, "--log-format", "json", "--drain-deadline-s", "0")
    commands = {"worker": ChildCommand(words, "worker")}
    supervisor = ChildSupervisor(commands, environment, LineTeller(tell))
    running = threading.Thread(target=_run_quietly, args=(supervisor,), name="worker", daemon=True)
    try:
        running.start()
        try:
            supervisor.wait_ready()
            yield server.url
        finally:
            supervisor.request_stop()
            supervisor.request_stop()
            running.join()
    finally:
        server.close()


def _run_quietly(supervisor: ChildSupervisor) -> None:
    """Keep the worker running; who waits for it is told of its failure, later ones are printed."""
    try:
        supervisor.run()
    except Exception as error:
        # The thread's boundary.
        if supervisor.was_ready:
            tell(str(error))


def _tell_of_workers(client: Client, pool: str) -> None:
    """Say that an answer may take long: nobody is there to give it."""
    status = client.status()
    if status.paused_for_s is not None:
        tell(f"pool {pool} is paused: answers wait until `tokenbus resume`")
    elif not status.ready:
        tell(f"no worker in pool {pool} can answer now; questions wait for one")


def _lines() -> Iterator[str]:
    """Yield what is asked, line by line; of a terminal until Ctrl-D, else to the end of the input.

    Lines between two of three quotation marks each are one question.
    """
    if not is_terminal(sys.stdin):
        yield from _joined(iter(sys.stdin))
        return
    with contextlib.suppress(ImportError):
        # Arrow keys and history at the prompt.
        import readline  # noqa: F401
    yield from _joined(_typed())


def _typed() -> Iterator[str]:
    while True:
        try:
            yield _ask()
        except EOFError:
            say("")
            return
        except KeyboardInterrupt:
            say("")
            tell(HELP)


def _ask() -> str:
    """Read a line from the terminal. Raises: EOFError, KeyboardInterrupt."""
    if sys.stdout.isatty():
        return input(_PROMPT)
    say(_PROMPT, end="")
    return input()


def _joined(lines: Iterator[str]) -> Iterator[str]:
    """Yield lines, those between fences as one."""
    for line in lines:
        opened = line.strip()
        if not opened.startswith(_FENCE):
            yield line
            continue
        block = [opened.removeprefix(_FENCE)]
        while not block[-1].rstrip().endswith(_FENCE):
            following = next(lines, None)
            if following is None:
                break
            block.append(following.rstrip("\n"))
        yield "\n".join(block).rstrip().removesuffix(_FENCE)
