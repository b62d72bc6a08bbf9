"""The compose file and the Dockerfile, read as the engine that runs them would."""

from __future__ import annotations

import re
import shlex
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from house.shell import Newcomer
from patience import PATIENCE_S
from redis import Redis
from redis.exceptions import RedisError

from tokenbus.producer.commands.cli import build_parser
from tokenbus.producer.server.embedded import find_server_binary, start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
CONTROL_DOCKERFILE = ROOT / "deploy" / "Dockerfile.control"
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker")]
OURS = [*WORKERS, "control"]


def _instructions(name: str, path: Path = DOCKERFILE) -> list[str]:
    """Arguments of every such instruction of a Dockerfile, continued lines joined."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split(maxsplit=1)[:1] == [name]]


def test_services_are_a_queue_a_control_service_and_a_worker_per_profile() -> None:
    """The queue always runs; a GPU and a CPU worker are chosen by profile, control with both."""
    assert set(SERVICES) == {"valkey", "worker", "worker-cpu", "control"}
    assert {name: SERVICES[name].get("profiles") for name in SERVICES} == {
        "valkey": None,
        "worker": ["gpu"],
        "worker-cpu": ["cpu"],
        "control": ["gpu", "cpu"],
    }


def test_valkey_keeps_what_it_accepted() -> None:
    """The queue logs its writes to a volume and refuses rather than evicts."""
    command = SERVICES["valkey"]["command"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert command[0] == "valkey-server"
    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",
    }
    assert "queue:/data" in SERVICES["valkey"]["volumes"]


def test_images_are_pinned() -> None:
    """Every image names a full version, and so does the base of our own."""
    images = [service["image"] for service in SERVICES.values()]
    images += _instructions("FROM") + _instructions("FROM", CONTROL_DOCKERFILE)
    assert len(images) == 6
    assert all(re.search(r":\d+\.\d+\.\d+(-[a-z0-9-]+)?$", image) for image in images)


def test_volumes_are_declared_and_used() -> None:
    """Every named volume that is mounted is declared, and none is declared for nothing."""
    mounted = {mount.split(":")[0] for s in SERVICES.values() for mount in s.get("volumes", [])}
    assert mounted == set(COMPOSE["volumes"])


@pytest.mark.parametrize("name", SERVICES)
def test_service_is_checked_and_comes_back(name: str) -> None:
    """Each service has a bounded health check and starts again when it dies."""
    check = SERVICES[name]["healthcheck"]
    assert check["test"][0] == "CMD"
    assert {"interval", "timeout", "retries"} <= set(check)
    assert SERVICES[name]["restart"] == "unless-stopped"


@pytest.mark.parametrize("name", OURS)
def test_commands_exist_in_the_command_line(name: str) -> None:
    """What the container runs, and what checks it, is understood by `tokenbus`."""
    for path in (DOCKERFILE, CONTROL_DOCKERFILE):
        assert _instructions("ENTRYPOINT", path) == ['["tokenbus"]']
    args = build_parser().parse_args(SERVICES[name]["command"])
    assert args.redis_url == "redis://valkey:6379/0"
    program, *check = SERVICES[name]["healthcheck"]["test"][1:]
    assert program == "tokenbus"
    checked = build_parser().parse_args(check)
    assert (checked.redis_url if name == "control" else checked.redis) == args.redis_url


@pytest.mark.parametrize("name", WORKERS)
def test_worker_waits_for_the_queue_and_gets_time_to_drain(name: str) -> None:
    """A worker starts after a healthy queue and is not killed while it drains."""
    assert SERVICES[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > 30


def test_gpu_is_reserved_by_its_profile_alone() -> None:
    """The GPU worker asks for one NVIDIA device, the CPU worker for none."""
    devices = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(d["driver"], d["count"], d["capabilities"]) for d in devices] == [
        ("nvidia", 1, ["gpu"])
    ]
    assert "deploy" not in SERVICES["worker-cpu"]


def test_nothing_runs_as_root_or_gains_rights() -> None:
    """The image switches to a user before it starts, and no service keeps a capability."""
    assert _instructions("USER") == ["tokenbus"]
    assert _instructions("USER", CONTROL_DOCKERFILE) == ["tokenbus"]
    assert SERVICES["valkey"]["user"] == "valkey"
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True


def test_image_is_built_from_files_that_exist() -> None:
    """Every COPY source is in the repository and let through by the ignore file."""
    for path in (DOCKERFILE, CONTROL_DOCKERFILE):
        allowed = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
        sources = [source for line in _instructions("COPY", path) for source in line.split()[:-1]]
        assert sources
        assert all((ROOT / source).exists() and f"!{source}" in allowed for source in sources)
    for name in OURS:
        wanted = CONTROL_DOCKERFILE if name == "control" else DOCKERFILE
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]) == wanted


def test_control_image_has_no_torch() -> None:
    """The control service installs its own extra and nothing of the engine's."""
    installs = [line for line in _instructions("RUN", CONTROL_DOCKERFILE) if "pip" in line]
    assert [re.findall(r"/src\[(\w+)\]", line) for line in installs] == [["control"]]


QUEUE = "redis://valkey:6379/0"


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Newcomer]:
    """Give a shell with an empty home, and a queue where the services look for theirs."""
    server = start_private()
    with Newcomer(tmp_path / "home", {QUEUE: server.url}) as inside:
        yield inside
    server.close()


def _run(container: Newcomer, name: str) -> str:
    """Start a service as compose does and check its health; return what its start said."""
    service = SERVICES[name]
    # A variable that is named alone is passed on; the newcomer has set none.
    assert not any("=" in variable for variable in service.get("environment", []))
    said = container.type(shlex.join(["tokenbus", *service["command"]]))
    container.type(shlex.join(service["healthcheck"]["test"][1:]))
    container.stop()
    return said


@pytest.mark.processes
@pytest.mark.parametrize("name", OURS)
def test_service_starts_and_is_healthy(container: Newcomer, name: str) -> None:
    """Command, environment and health check work outside of a container, from an empty home."""
    container.variables["TOKENBUS_ENGINE"] = "null"
    assert all(line.startswith("{") for line in _run(container, name).splitlines())


@pytest.mark.slow
@pytest.mark.processes
def test_worker_fetches_its_model_into_the_volume(container: Newcomer) -> None:
    """The first start of a worker fetches the model and is healthy afterwards."""
    said = _run(container, "worker-cpu")
    assert "downloading" in said
    assert list((container.home / ".cache" / "tokenbus" / "models").glob("*/model.safetensors"))


@pytest.mark.processes
def test_queue_starts_with_its_command(tmp_path: Path) -> None:
    """The server takes the options of the compose file and answers its health check's ping."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [find_server_binary(), *SERVICES["valkey"]["command"][1:]]
    command += ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(tmp_path)]
    assert SERVICES["valkey"]["healthcheck"]["test"][1:] == ["valkey-cli", "ping"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        redis = Redis(port=port)
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                assert redis.ping()
                break
            except RedisError:
                assert time.monotonic() < deadline
        assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        process.kill()
