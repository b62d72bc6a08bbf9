"""The compose file and the Dockerfile, read as the engine that runs them would."""

from __future__ import annotations

import os
import re
import shlex
import signal
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
from servers.ports import free_port

from tokenbus.producer.commands.cli import build_parser
from tokenbus.producer.server.embedded import find_server_binary, start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
SERVICES_DOCKERFILE = ROOT / "deploy" / "Dockerfile.services"
TEXT = (ROOT / "docker-compose.yml").read_text()
_VARIABLE = re.compile(r"\$\{(\w+):-([^}]*)\}")
EXAMPLE = (ROOT / "deploy" / "compose.env.example").read_text()


def _filled_in(text: str, **values: str) -> dict[str, Any]:
    """Read a compose file as compose does: variables filled in, defaults where none is set."""

    def fill(part: object) -> Any:
        if isinstance(part, dict):
            return {name: fill(each) for name, each in part.items()}
        if isinstance(part, list):
            return [fill(each) for each in part]
        if isinstance(part, str):
            return _VARIABLE.sub(lambda found: values.get(found[1]) or found[2], part)
        return part

    filled: dict[str, Any] = fill(yaml.safe_load(text))
    assert "${" not in str(filled)
    return filled


COMPOSE = _filled_in(TEXT)
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
WORKERS = [name for name in SERVICES if name.startswith("worker")]
SIDE_SERVICES = ["gateway", "control"]
OURS = [*WORKERS, *SIDE_SERVICES]
OBSERVERS = ["prometheus", "grafana"]


def _instructions(name: str, path: Path = DOCKERFILE) -> list[str]:
    """Arguments of every such instruction of a Dockerfile, continued lines joined."""
    lines = path.read_text().replace("\\\n", " ").splitlines()
    return [line.split(maxsplit=1)[1] for line in lines if line.split(maxsplit=1)[:1] == [name]]


def test_services_are_a_queue_and_what_each_profile_adds() -> None:
    """The queue always runs; workers are chosen by profile, the doors come with either."""
    assert {name: SERVICES[name].get("profiles") for name in SERVICES} == {
        "valkey": None,
        "worker": ["gpu"],
        "worker-cpu": ["cpu"],
        "gateway": ["gpu", "cpu"],
        "control": ["gpu", "cpu"],
        "prometheus": ["observability"],
        "grafana": ["observability"],
    }


def test_variables_stand_in_the_example_with_their_defaults() -> None:
    """Whatever the file reads from the environment is listed where people look for it."""
    listed = dict(re.findall(r"(?m)^(?:# )?([A-Z_]+)=(.*)$", EXAMPLE))
    read = dict(_VARIABLE.findall(TEXT))
    passed_on = {
        name
        for service in SERVICES.values()
        for name, value in service.get("environment", {}).items()
        if value is None
    }
    assert set(listed) == set(read) | passed_on
    assert {name: listed[name] for name in read} == read


def test_nothing_is_published_beyond_the_loopback() -> None:
    """A port that the host publishes is the loopback's; the queue's and the workers' are not."""
    ports = {name: service.get("ports", []) for name, service in SERVICES.items()}
    assert {name for name, published in ports.items() if published} == {"gateway", *OBSERVERS}
    assert all(port.startswith("127.0.0.1:") for published in ports.values() for port in published)


def test_password_is_asked_for_and_given() -> None:
    """A password that is set is the server's, its health check's and that of all who join."""
    services = _filled_in(TEXT, VALKEY_PASSWORD="s3cret")["services"]
    assert services["valkey"]["environment"] == {"REDISCLI_AUTH": "s3cret"}
    urls = {services[name]["environment"]["TOKENBUS_REDIS_URL"] for name in OURS}
    assert urls == {"redis://:s3cret@valkey:6379/0"}
    assert not any("s3cret" in str(service.get("command")) for service in services.values())


def test_valkey_keeps_what_it_accepted() -> None:
    """The queue logs its writes to a volume and refuses rather than evicts."""
    shell, flag, line = SERVICES["valkey"]["command"]
    assert (shell, flag) == ("sh", "-c")
    command = shlex.split(line[line.index("valkey-server") :])
    options = dict(zip(command[2::2], command[3::2], strict=True))
    assert command[:2] == ["valkey-server", "-"]
    assert options == {
        "--appendonly": "yes",
        "--appendfsync": "everysec",
        "--maxmemory-policy": "noeviction",
        "--maxmemory": "1gb",
    }
    assert SERVICES["valkey"]["mem_limit"] == "2g"
    assert "queue:/data" in SERVICES["valkey"]["volumes"]


def test_images_are_pinned() -> None:
    """Every image names a full version, and so does the base of our own."""
    images = [service["image"] for service in SERVICES.values()]
    images += _instructions("FROM") + _instructions("FROM", SERVICES_DOCKERFILE)
    assert len(images) == 9
    assert all(re.search(r":v?\d+\.\d+\.\d+(-[a-z0-9-]+)?$", image) for image in images)


def test_volumes_are_declared_and_used() -> None:
    """Every named volume that is mounted is declared, and none is declared for nothing."""
    mounted = {mount.split(":")[0] for s in SERVICES.values() for mount in s.get("volumes", [])}
    files = {mount for mount in mounted if mount.startswith("./")}
    assert mounted - files == set(COMPOSE["volumes"])
    assert all((ROOT / file).exists() for file in files)


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
    for path in (DOCKERFILE, SERVICES_DOCKERFILE):
        assert _instructions("ENTRYPOINT", path) == ['["tokenbus"]']
    args = build_parser().parse_args(SERVICES[name]["command"])
    program, *check = SERVICES[name]["healthcheck"]["test"][1:]
    assert program == ("python" if name == "gateway" else "tokenbus")
    if name == "gateway":
        compile(check[1], name, "exec")
        assert f"127.0.0.1:{args.gateway_port}/healthz" in check[1]
    else:
        build_parser().parse_args(check)


@pytest.mark.parametrize("name", WORKERS)
def test_worker_waits_for_the_queue_and_gets_time_to_drain(name: str) -> None:
    """A worker starts after a healthy queue and is not killed while it drains."""
    assert SERVICES[name]["depends_on"] == {"valkey": {"condition": "service_healthy"}}
    grace_s = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
    assert grace_s > 30


def test_gpu_is_reserved_by_its_profile_alone() -> None:
    """The GPU worker asks for as many NVIDIA devices as it is told, the CPU worker for none."""
    devices = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert [(d["driver"], d["count"], d["capabilities"]) for d in devices] == [
        ("nvidia", "1", ["gpu"])
    ]
    more = _filled_in(TEXT, TOKENBUS_GPUS="4")["services"]["worker"]
    assert more["deploy"]["resources"]["reservations"]["devices"][0]["count"] == "4"
    assert "deploy" not in SERVICES["worker-cpu"]


def test_nothing_runs_as_root_or_gains_rights() -> None:
    """The image switches to a user before it starts, and no service keeps a capability."""
    assert _instructions("USER") == ["tokenbus"]
    assert _instructions("USER", SERVICES_DOCKERFILE) == ["tokenbus"]
    assert SERVICES["valkey"]["user"] == "valkey"
    for service in SERVICES.values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert service["read_only"] is True


def test_image_is_built_from_files_that_exist() -> None:
    """Every COPY source is in the repository and let through by the ignore file."""
    for path in (DOCKERFILE, SERVICES_DOCKERFILE):
        allowed = path.with_name(f"{path.name}.dockerignore").read_text().splitlines()
        sources = [source for line in _instructions("COPY", path) for source in line.split()[:-1]]
        assert sources
        assert all((ROOT / source).exists() and f"!{source}" in allowed for source in sources)
    for name in OURS:
        wanted = SERVICES_DOCKERFILE if name in SIDE_SERVICES else DOCKERFILE
        assert (ROOT / SERVICES[name]["build"]["dockerfile"]) == wanted


def test_image_of_the_services_has_no_torch() -> None:
    """Gateway and control service install their own extras and nothing of the engine's."""
    assert _extras(SERVICES_DOCKERFILE) == ["control,gateway,tracing"]


def test_images_can_send_traces() -> None:
    """The endpoint of a collector reaches every process that has spans, and what sends them too."""
    assert _extras(DOCKERFILE) == ["worker,tracing"]
    for name in ("worker", "worker-cpu", "control"):
        assert "TOKENBUS_TRACE_ENDPOINT" in SERVICES[name]["environment"]


def _extras(dockerfile: Path) -> list[str]:
    """Return the extras that an image installs of us."""
    return [
        extras
        for line in _instructions("RUN", dockerfile)
        for extras in re.findall(r"/src\[([\w,]+)\]", line)
    ]


# What only the network of the containers has: a queue by its name, a world to listen to, ports of
# one's own and a home.
QUEUE = "redis://:@valkey:6379/0"
WORLD = "0.0.0.0"  # noqa: S104 - what the containers listen to
PORTS = ("8000", "9464")
FILES = "/home/tokenbus/files"


@pytest.fixture
def container(tmp_path: Path) -> Iterator[Newcomer]:
    """Give a shell with an empty home, and a queue where the services look for theirs."""
    server = start_private()
    home = tmp_path / "home"
    given = {QUEUE: server.url, WORLD: "127.0.0.1", FILES: str(home / "files")}
    given |= {port: str(free_port()) for port in PORTS}
    with Newcomer(home, given) as inside:
        yield inside
    server.close()


def _run(container: Newcomer, name: str) -> str:
    """Start a service as compose does and check its health; return what its start said."""
    service = SERVICES[name]
    # A variable without a value is passed on; the newcomer has set none.
    for variable, value in service["environment"].items():
        if value is not None:
            container.variables[variable] = container.given.get(value, value)
    said = container.type(shlex.join(["tokenbus", *service["command"]]))
    container.type(shlex.join(service["healthcheck"]["test"][1:]))
    container.stop()
    return said


@pytest.mark.processes
@pytest.mark.parametrize(
    "name",
    # Both kinds of worker start alike where there is no GPU.
    [pytest.param(name, marks=pytest.mark.slow) if name == "worker" else name for name in OURS],
)
def test_service_starts_and_is_healthy(container: Newcomer, name: str) -> None:
    """Command, environment and health check work outside of a container, from an empty home."""
    container.variables["TOKENBUS_ENGINE"] = "null"
    said = _run(container, name)
    # The gateway tells people how to use it, the others tell machines what they do.
    assert name == "gateway" or all(line.startswith("{") for line in said.splitlines())


@pytest.mark.slow
@pytest.mark.processes
def test_worker_fetches_its_model_into_the_volume(container: Newcomer) -> None:
    """The first start of a worker fetches the model and is healthy afterwards."""
    said = _run(container, "worker-cpu")
    assert "downloading" in said
    assert list((container.home / ".cache" / "tokenbus" / "models").glob("*/model.safetensors"))


@pytest.mark.processes
@pytest.mark.parametrize("password", ["", "s3cret"])
def test_queue_starts_with_its_command(tmp_path: Path, password: str) -> None:
    """The server takes its options and its password, and answers its health check's ping."""
    port = free_port()
    # Compose makes one dollar of two.
    line = SERVICES["valkey"]["command"][2].replace("$$", "$")
    line = line.replace("valkey-server", shlex.quote(find_server_binary()))
    line += f" --port {port} --bind 127.0.0.1 --dir {shlex.quote(str(tmp_path))}"
    assert SERVICES["valkey"]["healthcheck"]["test"][1:] == ["valkey-cli", "ping"]
    environment = os.environ | {"REDISCLI_AUTH": password}
    with (
        subprocess.Popen(
            ["/bin/sh", "-c", line],
            env=environment,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as process,
        Redis(port=port, password=password or None) as redis,
    ):
        try:
            deadline = time.monotonic() + PATIENCE_S
            while not _answers(redis):
                assert time.monotonic() < deadline
            found = redis.config_get("maxmemory*") | redis.config_get("requirepass")
            assert found["maxmemory-policy"] == "noeviction"
            assert found["maxmemory"] == str(2**30)
            assert found["requirepass"] == password
        finally:
            # The shell's child too.
            os.killpg(process.pid, signal.SIGKILL)


def _answers(redis: Redis) -> bool:
    """Tell whether the server answers yet."""
    try:
        return bool(redis.ping())
    except RedisError:
        return False
