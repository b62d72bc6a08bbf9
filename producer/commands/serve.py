"""`tokenbus serve`: from nothing to an endpoint, by a server, workers and a gateway of its own.

Where its extra is installed the control service runs beside them, for batches.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from importlib.util import find_spec
from typing import TYPE_CHECKING
from urllib.parse import quote

from tokenbus.engine.chat.requests.request_rules import model_names
from tokenbus.producer.commands.hints import tell
from tokenbus.producer.errors import RequestInvalid
from tokenbus.producer.gateway.settings import GatewaySettings
from tokenbus.producer.server.embedded import join_shared
from tokenbus.producer.server.url import ServerUrl
from tokenbus.producer.serving.child_supervisor import ChildSupervisor
from tokenbus.producer.serving.endpoint import Endpoint
from tokenbus.producer.serving.served_child import ChildCommand
from tokenbus.producer.serving.told_lines import LineTeller

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

# What the children cannot begin without; they say themselves what else is missing.
_LIBRARIES = ("torch", "structlog", "fastapi", "uvicorn")
_OF_CONTROL = ("arq", "aiohttp", "cronsim")
# A worker tells of itself once a second.
_READY_S = 30.0
_OF_GATEWAY = ("gateway_host", "gateway_port", "gateway_auth")


def run_serve(
    args: argparse.Namespace,
    *,
    workers: Mapping[str, ChildCommand],
    gateway: Sequence[str],
    folder: Path,
) -> int:
    """Serve a model until told to stop; return 0 after an orderly end.

    `workers` are the commands of the workers by name, `gateway` the options of the gateway, as
    words. The embedded server lives in a folder below `folder`, one for each port, and keeps what
    was accepted for the next start.
    Raises: ModuleNotFoundError for a library that is missing; RequestInvalid for a port that is
        taken; ChildFailed with the reason of a part that does not run; ServerError.
    """
    began_at = time.monotonic()
    _check_libraries(args)
    settings = _gateway_settings(args)
    names = model_names(args.model, args.served_model_name or ())
    endpoint = _endpoint(args, settings)
    named = [f"--served-model-name={name}" for name in names]
    door = ("gateway", *gateway, f"--port={endpoint.port}", *named)
    commands = _control() | dict(workers) | {"gateway": ChildCommand(door, "gateway")}
    with _server(args.redis, folder / str(endpoint.port)) as url:
        files = {"TOKENBUS_FILES_URL": str(folder / f"{endpoint.port}-files")}
        environment = files | os.environ | {"TOKENBUS_REDIS_URL": url}
        if settings.gateway_api_keys:
            # Arguments can be read by everyone on the machine.
            keys = [key.get_secret_value() for key in settings.gateway_api_keys]
            environment["TOKENBUS_GATEWAY_API_KEYS"] = json.dumps(keys)
        teller = LineTeller(tell, is_verbose=args.log_level in ("debug", "info"))
        supervisor = ChildSupervisor(commands, environment, teller)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, supervisor.request_stop)
        supervisor.run(lambda: _tell_ready(endpoint, began_at))
    tell("stopped")
    return 0


def _check_libraries(args: argparse.Namespace) -> None:
    """Raise ModuleNotFoundError for the first library that is not installed."""
    for name in _LIBRARIES:
        if name == "torch" and args.engine == "null":
            continue
        if find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _control() -> dict[str, ChildCommand]:
    """Return the command of the service that runs batches, where its libraries are installed."""
    if any(find_spec(name) is None for name in _OF_CONTROL):
        return {}
    return {"control": ChildCommand(("control", "--log-format", "json"), "control")}


def _gateway_settings(args: argparse.Namespace) -> GatewaySettings:
    """Return what the gateway will read, and take its keys out of the arguments.

    Raises: ClientSettingsInvalid.
    """
    keys, args.gateway_api_keys = args.gateway_api_keys, None
    given = {name: getattr(args, name) for name in _OF_GATEWAY}
    return GatewaySettings.load(gateway_api_keys=keys, **given)


def _endpoint(args: argparse.Namespace, settings: GatewaySettings) -> Endpoint:
    """Return where the gateway will listen. Raises: RequestInvalid."""
    if not args.model:
        raise RequestInvalid("model", "is empty")
    # A path is a clumsy name; its last part is served too.
    name = (args.served_model_name or model_names(args.model, ()))[-1]
    has_key = bool(settings.gateway_api_keys) or settings.gateway_auth == "keys"
    host, port = settings.gateway_host, settings.gateway_port
    return Endpoint.at(host, port, name, has_key=has_key or not settings.is_local)


@contextlib.contextmanager
def _server(url: str | None, folder: Path) -> Iterator[str]:
    """Give the URL of the server: the one that was named, else an embedded one in a folder.

    Raises: UrlInvalid, EmbeddedUnavailable.
    """
    if url is not None:
        ServerUrl.parse(url).refuse_private("serve")
        yield url
        return
    tell("server: starting")
    server = join_shared(folder)
    try:
        tell(f"server: ready, in {folder}")
        yield f"embedded://{quote(str(folder))}"
    finally:
        server.close()


def _tell_ready(endpoint: Endpoint, began_at: float) -> None:
    """Print where the endpoint is and two lines that ask it."""
    if not endpoint.wait_ready(_READY_S):
        tell(f"gateway: {endpoint.url} listens, and sees no worker that can answer yet")
    taken_s = time.monotonic() - began_at
    tell(f"ready after {taken_s:.1f} s; Ctrl-C ends it")
    tell(f"dashboard: {endpoint.url}/ui/")
    lines = (f"{endpoint.url}/v1 serves {endpoint.model}", endpoint.curl_line())
    print(*lines, endpoint.python_line(), sep="\n\n", end="\n\n", flush=True)
