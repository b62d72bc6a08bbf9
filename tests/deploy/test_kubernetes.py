"""The Kustomize overlays: built by kubectl, held to the schemas and to what our processes are."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from house.queries import unknown_parts

from tokenbus.producer.commands.cli import build_parser

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = sorted(path.name for path in (FOLDER / "overlays").iterdir())
VERSION = "1.31"
# Kinds of operators, which the schemas of Kubernetes do not hold.
OPERATORS = {"ScaledObject", "ServiceMonitor", "PrometheusRule"}
OURS = ("worker", "gateway", "control")
SECRETS = {
    "tokenbus-server": {"url", "password"},
    "tokenbus-hub": {"token"},
    "tokenbus-files": {"url"},
    "tokenbus-webhooks": {"keys"},
}

Object = dict[str, Any]


def _build(overlay: str) -> list[Object]:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("there is no kubectl that builds the overlay")
    command = [kubectl, "kustomize", str(FOLDER / "overlays" / overlay)]
    built = subprocess.run(command, check=True, capture_output=True, text=True)
    return [each for each in yaml.safe_load_all(built.stdout) if each]


@pytest.fixture(scope="module", params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    """Build an overlay."""
    return _build(request.param)


def _named(objects: list[Object], kind: str, name: str) -> Object:
    (found,) = [
        each for each in objects if each["kind"] == kind and each["metadata"]["name"] == name
    ]
    return found


def _has(objects: list[Object], kind: str) -> bool:
    return any(each["kind"] == kind for each in objects)


def _pods(objects: list[Object]) -> dict[str, Object]:
    return {
        each["metadata"]["name"]: each["spec"]["template"]
        for each in objects
        if each["kind"] in {"Deployment", "StatefulSet"}
    }


def _container(objects: list[Object], name: str) -> Object:
    (container,) = _pods(objects)[name]["spec"]["containers"]
    found: Object = container
    return found


def test_every_folder_is_used() -> None:
    """No base, component or manifest lies there that no overlay takes."""
    used: set[Path] = set()
    to_read = [FOLDER / "overlays" / name for name in OVERLAYS]
    while to_read:
        folder = to_read.pop().resolve()
        if folder in used:
            continue
        used.add(folder)
        parts = yaml.safe_load((folder / "kustomization.yaml").read_text())
        used.add(folder / "kustomization.yaml")
        for named in [*parts.get("resources", []), *parts.get("components", [])]:
            target = folder / named
            if target.is_dir():
                to_read.append(target)
            else:
                used.add(target)
        used |= {folder / each["path"] for each in parts.get("patches", []) if "path" in each}
    files = {path.resolve() for path in FOLDER.rglob("*.yaml")}
    assert files == {path for path in used if path.suffix == ".yaml"}


def test_objects_keep_to_the_schemas(objects: list[Object]) -> None:
    """Kubernetes knows every field, and no object comes twice."""
    for each in objects:
        if each["kind"] not in OPERATORS:
            kubernetes_validate.validate(each, VERSION, strict=True)
    names = [(each["kind"], each["metadata"]["name"]) for each in objects]
    assert len(names) == len(set(names))
    assert {each["metadata"]["namespace"] for each in objects} == {"tokenbus"}


def test_an_unknown_field_fails(objects: list[Object]) -> None:
    """The schemas refuse what is misspelt, at any depth."""
    wrong = _named(objects, "Deployment", "worker")
    container = wrong["spec"]["template"]["spec"]["containers"][0]
    container["readinesProbe"] = container["readinessProbe"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, VERSION, strict=True)
    del container["readinesProbe"]


@pytest.mark.parametrize("name", OURS)
def test_commands_exist_and_ports_are_theirs(objects: list[Object], name: str) -> None:
    """The command line knows each option, and probes ask at the port that it opens."""
    container = _container(objects, name)
    args = build_parser().parse_args(container["args"])
    port = args.gateway_port if name == "gateway" else args.metrics_port
    (opened,) = container["ports"]
    assert opened["containerPort"] == port
    # A gateway takes jobs that wait for the first worker.
    ready = "/healthz" if name == "gateway" else "/readyz"
    for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", ready)):
        assert container[probe]["httpGet"] == {"path": path, "port": opened["name"]}


@pytest.mark.parametrize("name", OURS)
def test_variables_are_settings(objects: list[Object], name: str) -> None:
    """Each variable is one that the processes read, and each secret one that the page names."""
    container = _container(objects, name)
    known = _settings()
    shared = _named(objects, "ConfigMap", "tokenbus-settings")["data"]
    own = [each["name"] for each in container["env"]]
    assert {*shared, *own} - {"HF_TOKEN"} <= known
    page = (ROOT / "docs" / "deploy.md").read_text()
    for each in container["env"]:
        secret = each["valueFrom"]["secretKeyRef"]
        assert secret["key"] in SECRETS[secret["name"]]
        assert secret["name"] in page


def _settings() -> set[str]:
    """Return the variables of all settings, found where their classes are declared."""
    from tokenbus.producer.gateway.settings import GatewaySettings
    from tokenbus.worker.control.settings import ControlSettings
    from tokenbus.worker.settings import WorkerSettings

    models = (GatewaySettings, ControlSettings, WorkerSettings)
    return {f"TOKENBUS_{field.upper()}" for model in models for field in model.model_fields}


def test_ranks_of_a_worker_have_a_gpu_each_in_its_pod() -> None:
    """A group has as many GPUs as ranks, whole cores that are its own, and memory to share."""
    objects = _build("gpu-groups")
    container = _container(objects, "worker")
    given = build_parser().parse_args(container["args"])
    assert given.tensor_parallel > 1
    bounds = container["resources"]["limits"]
    assert bounds["nvidia.com/gpu"] == str(given.tensor_parallel)
    assert container["resources"]["requests"] == bounds
    assert bounds["cpu"].isdecimal()
    volumes = _pods(objects)["worker"]["spec"]["volumes"]
    (shared,) = [
        each["name"] for each in volumes if each.get("emptyDir", {}).get("medium") == "Memory"
    ]
    mounts = {each["name"]: each["mountPath"] for each in container["volumeMounts"]}
    assert Path(mounts[shared]) == Path("/dev", "shm")


def test_gateway_knows_the_model_that_workers_will_serve(objects: list[Object]) -> None:
    """A request names the model while there is no worker, and is taken."""
    told = _named(objects, "ConfigMap", "tokenbus-settings")["data"]
    assert told["TOKENBUS_MODEL"] in json.loads(told["TOKENBUS_GATEWAY_MODEL_NAMES"])


def test_pods_get_time_to_drain(objects: list[Object]) -> None:
    """A pod is killed later than its process stops by itself."""
    worker = _pods(objects)["worker"]["spec"]
    args = build_parser().parse_args(_container(objects, "worker")["args"])
    assert worker["terminationGracePeriodSeconds"] >= args.drain_deadline_s + 10
    gateway = _pods(objects)["gateway"]["spec"]
    from tokenbus.producer.gateway.settings import GatewaySettings

    drain_s = GatewaySettings.model_fields["gateway_drain_s"].default
    assert gateway["terminationGracePeriodSeconds"] >= drain_s + 5


def test_nothing_gains_rights(objects: list[Object]) -> None:
    """Every pod runs as a user of its own, without capabilities or a token of the cluster."""
    for name, pod in _pods(objects).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert re.search(r":\d+\.\d+\.\d+(-[a-z]+)?$", container["image"])


def test_selectors_meet_pods(objects: list[Object]) -> None:
    """Services, budgets and policies select pods that exist, by ports that these open."""
    pods = _pods(objects)
    labels = [pod["metadata"]["labels"] for pod in pods.values()]
    for each in objects:
        spec = each.get("spec", {})
        wanted = {
            "Service": lambda spec: spec["selector"],
            "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
            "NetworkPolicy": lambda spec: spec["podSelector"].get("matchLabels", {}),
        }.get(each["kind"])
        if wanted is None:
            continue
        chosen = wanted(spec).items()
        met = [name for name, own in zip(pods, labels, strict=True) if chosen <= own.items()]
        assert met, each["metadata"]["name"]
        if each["kind"] == "Service":
            opened = {port["name"] for port in _container(objects, met[0])["ports"]}
            assert {port["targetPort"] for port in spec["ports"]} <= opened


def test_every_pod_is_closed_but_where_a_policy_opens_it(objects: list[Object]) -> None:
    """All pods are ours by their label, which is what the closing policy and the queue's go by."""
    closed = _named(objects, "NetworkPolicy", "nothing-comes-in")["spec"]
    assert "ingress" not in closed
    for pod in _pods(objects).values():
        assert closed["podSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()


def test_server_asks_for_its_password(objects: list[Object]) -> None:
    """The server of the cluster keeps what it accepted and hears its password on standard input."""
    if "valkey" not in _pods(objects):
        return
    container = _container(objects, "valkey")
    line = container["args"][0]
    assert 'echo "requirepass' in line
    options = shlex.split(line[line.index("valkey-server") :])
    assert options[:2] == ["valkey-server", "-"]
    for option, value in (("--appendonly", "yes"), ("--maxmemory-policy", "noeviction")):
        assert options[options.index(option) + 1] == value


def test_only_our_own_reach_the_server() -> None:
    """The queue's policy lets in our parts and producers, on the server's port alone."""
    policy = _named(_build("gpu"), "NetworkPolicy", "queue")["spec"]
    (rule,) = policy["ingress"]
    assert rule["ports"] == [{"port": "redis"}]
    assert [each["podSelector"]["matchLabels"] for each in rule["from"]] == [
        {"app.kubernetes.io/part-of": "tokenbus"},
        {"tokenbus/producer": "true"},
    ]


def test_autoscaler_wakes_workers_by_figures_that_exist(objects: list[Object]) -> None:
    """Scaling starts from no worker at any backlog, and reads what the control service tells."""
    if not _has(objects, "ScaledObject"):
        assert _named(objects, "Deployment", "worker")["spec"]["replicas"] == 1
        return
    spec = _named(objects, "ScaledObject", "worker")["spec"]
    assert spec["scaleTargetRef"] == {"name": "worker"}
    assert spec["minReplicaCount"] == 0
    assert "replicas" not in _named(objects, "Deployment", "worker")["spec"]
    pool = _named(objects, "ConfigMap", "tokenbus-settings")["data"]["TOKENBUS_POOL"]
    for trigger in spec["triggers"]:
        told = trigger["metadata"]
        assert unknown_parts(told["query"]) == []
        assert f'pool="{pool}"' in told["query"]
        assert told["activationThreshold"] == "0"
        assert told["ignoreNullValues"] == "false"


def test_cluster_has_the_alerts_of_compose(objects: list[Object]) -> None:
    """The operator's rules are those of the rules file, and its monitor finds every service."""
    if not _has(objects, "PrometheusRule"):
        return
    rules = yaml.safe_load((ROOT / "deploy" / "observability" / "rules.yml").read_text())
    assert _named(objects, "PrometheusRule", "tokenbus")["spec"] == rules
    monitor = _named(objects, "ServiceMonitor", "tokenbus")["spec"]
    (chosen,) = monitor["selector"]["matchExpressions"]
    assert sorted(chosen["values"]) == sorted(OURS)
    ports = {each["port"] for each in monitor["endpoints"]}
    for name in OURS:
        service = _named(objects, "Service", name)
        assert {port["name"] for port in service["spec"]["ports"]} <= ports
        assert service["metadata"]["labels"]["app.kubernetes.io/name"] == name
