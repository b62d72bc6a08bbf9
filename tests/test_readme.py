"""What README and docs tell a newcomer to type exists and works, from an empty home and cache.

Every block of shell or Python on the pages is run as it stands, or is listed here with the reason
why not.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from house.shell import Block, Newcomer, blocks, code_blocks

from tokenbus.producer.commands.cli import build_parser
from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTROL = (ROOT / "docs" / "control.md").read_text()
BLOCKS = blocks()
COMMANDS = sorted({line for block in BLOCKS for line in block.lines if "tokenbus " in line})
# Blocks that are run, whole, by their page and how they begin: with a worker that makes tokens up,
# and slowly with the model.
QUICK_START = "docs/getting-started.md", "tokenbus worker --model smollm2-135m"
LATER = "docs/getting-started.md", "tokenbus list"
WORKER = "README.md", "tokenbus worker --model smollm2-135m"
CONTROLS = "docs/control.md", "tokenbus control --redis"
BENCH = "docs/bench.md", "tokenbus bench pool --users 64"
# tests/test_serve.py types it, and goes on from there.
SERVE = "README.md", "tokenbus serve smollm2-135m"
RUN = (QUICK_START, LATER, WORKER, CONTROLS, BENCH, SERVE)
# Blocks that are not, by how they begin.
NOT_RUN = {
    'pip install "tokenbus[gateway]"': "installs; tests/producer/gateway/ runs the command",
    'pip install ".[worker,gateway]"': "installs; tests/test_packaging.py installs the wheel",
    "tokenbus worker --engine null --redis redis://127.0.0.1:6390/0": (
        "tests/deploy/test_newcomer.py types all of docs/incidents.md"
    ),
    "TOKENBUS_NULL_TOKENS_PER_S=20 TOKENBUS_NULL_CRASH_ID=33 tokenbus worker": "as the line before",
    "tokenbus dead list --redis redis://127.0.0.1:6390/0": "as the line before",
    "tokenbus worker --model smollm2-135m --redis redis://127.0.0.1:6390/0": "as the line before",
    "tokenbus worker --model MODEL --replicas": "tests/integration/test_replicas.py runs replicas",
    "tokenbus worker --model /models/qwen3-32b": "needs two GPUs; tests/engine/parallel/ has CPUs",
    "tokenbus keys create": "tests/producer/gateway/test_keys.py makes, lists and revokes keys",
    "pip install .": "installs into an environment; tests/test_packaging.py installs the wheel",
    "docker compose": "needs containers; tests/deploy/test_compose.py runs what is in them",
    "make chaos": "takes ten minutes, and runs tests",
    "PYTHONPATH=tests/support .venv/bin/python": "is a part of make chaos",
    "tokenbus bench pool --arrival at-once": "is for 16 cores",
    "tokenbus bench pool --users 64 --model": "needs a model of 15 GB",
    "tokenbus bench gateway": "takes minutes; tests/worker/bench/test_gateway_bench.py runs it",
    "TOKENBUS_ENGINE=null TOKENBUS_NULL_TOKENS_PER_S=20 tokenbus serve": (
        "needs aiperf; tests/test_serve.py runs the command"
    ),
    "TOKENBUS_PUBLISHERS=4 tokenbus bench": "is for 16 cores",
    "TOKENBUS_PUBLISHERS=1 tokenbus bench": "is for 16 cores",
    "tokenbus bench pool --model smollm2-135m --trace": "needs a trace that is not ours to give",
}
PYTHON = code_blocks("python")
# Pages whose Python is not run here.
PYTHON_ELSEWHERE = {
    "docs/clients.md": "tests/integration/test_surroundings.py runs its files",
    "docs/coming-from.md": "tests/clients drives OpenAI's client",
    "docs/control.md": "tests/worker/control/test_webhooks.py runs the check, and"
    " tests/test_examples.py a backend on arq",
    "docs/gateway.md": "tests/clients drives OpenAI's client",
}
INSTALLED = "".join((ROOT / page).read_text() for page in ("README.md", "docs/getting-started.md"))
TARGETS = sorted(set(re.findall(r"\bmake ([a-z-]+)\b", README)))


@pytest.mark.parametrize("line", COMMANDS)
def test_command_is_understood(line: str) -> None:
    """Every command line in a code block parses."""
    words = shlex.split(line)
    args, rest = build_parser().parse_known_args(words[words.index("tokenbus") + 1 :])
    assert callable(args.run)
    assert getattr(args, "takes_rest", False) or not rest


def test_every_block_is_run_or_has_its_reason() -> None:
    """No shell block of the pages is left out in silence, and no reason outlives its block."""
    run = [_block(each) for each in RUN]
    told = {begin: [block for block in BLOCKS if _begins(block, begin)] for begin in NOT_RUN}
    assert all(told.values())
    named = {id(block) for block in run} | {id(each) for found in told.values() for each in found}
    assert [block.name for block in BLOCKS if id(block) not in named] == []


def test_every_python_block_is_run_or_has_its_reason() -> None:
    """The same of Python: a page is run here, or is named with the test that runs it."""
    pages = {block.page for block in PYTHON}
    assert pages >= PYTHON_ELSEWHERE.keys()
    assert pages - PYTHON_ELSEWHERE.keys() == {"README.md", *_PAGES_OF_PYTHON}


def _begins(block: Block, begin: str) -> bool:
    return block.lines[0].startswith(begin)


def _block(place: tuple[str, str]) -> Block:
    """Return the block of a page that begins so."""
    page, begin = place
    return next(block for block in BLOCKS if block.page == page and _begins(block, begin))


@pytest.fixture
def newcomer(tmp_path: Path) -> Iterator[Newcomer]:
    """Give a shell with an empty home; what the pages name by example lies there or is near."""
    server = start_private()
    home = tmp_path / "home"
    given = {"/tmp/bus": str(home / "bus")} | dict.fromkeys(  # noqa: S108
        ("redis://127.0.0.1:6379/0", "redis://valkey:6379/0"), server.url
    )
    with Newcomer(home, given) as arrived:
        yield arrived
    server.close()


@pytest.mark.processes
def test_quick_start_works_from_an_empty_home(newcomer: Newcomer) -> None:
    """Worker, question and status, copied from the page; the worker makes its tokens up."""
    newcomer.variables["TOKENBUS_ENGINE"] = "null"
    _worker, answer, status = map(newcomer.type, _block(QUICK_START).lines)
    assert len(answer.split()) > 10
    assert "jobs at 1 workers" in status
    newcomer.stop()


@pytest.mark.slow
@pytest.mark.processes
def test_quick_start_fetches_its_model(newcomer: Newcomer) -> None:
    """The same with the model that it names: fetched with progress, told phase by phase."""
    started, answer, _status = map(newcomer.type, _block(QUICK_START).lines)
    assert "downloading" in started
    assert started.index("converting") < started.index("loading torch")
    assert "no worker" not in answer
    for line in _block(LATER).lines:
        newcomer.type(line)
    newcomer.stop()


@pytest.mark.slow
@pytest.mark.processes
def test_bench_of_the_page_runs(newcomer: Newcomer) -> None:
    """The first command of the page on benches ends with its table."""
    [line] = _block(BENCH).lines
    assert "TTFT" in newcomer.type(line)


@pytest.mark.processes
def test_control_service_starts_with_the_files_of_the_page(newcomer: Newcomer) -> None:
    """Keys and crons, copied from the page, are taken; the service and its check work."""
    [key] = re.findall(r"keys\.json is\s`({.*?})`", CONTROL)
    [table] = re.findall(r"^```toml\n(.*?)^```$", CONTROL, re.MULTILINE | re.DOTALL)
    (newcomer.home / "keys.json").write_text(key)
    (newcomer.home / "crons.toml").write_text(table)
    (newcomer.home / "products.jsonl").write_text('{"prompt": "A tent:"}\n')
    said = [newcomer.type(line) for line in _block(CONTROLS).lines]
    assert len(said) == 2
    newcomer.stop()


@pytest.mark.parametrize("target", TARGETS)
def test_target_is_in_the_makefile(target: str) -> None:
    """Every make target that is named exists."""
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_extras_are_those_of_the_package() -> None:
    """The extras that are named can be installed."""
    project = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r"\.\[([\w,]+)\]", INSTALLED)
    assert named
    for extra in {extra for each in named for extra in each.split(",")}:
        assert re.search(rf"^{extra} = \[", project, re.MULTILINE)


def test_readme_is_short() -> None:
    """It is read to its end: under 150 lines, with a picture that says in words what it shows."""
    assert len(README.splitlines()) < 150
    [(told, picture)] = re.findall(r"!\[([^\]]+)\]\((\S+)\)", README)
    assert len(told) > 40
    drawing = (ROOT / picture).read_text()
    assert "prefers-color-scheme: dark" in drawing
    assert "<desc" in drawing


def _section_of_results(anchor: str) -> str:
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    for section in re.split(r"(?m)^## ", results):
        heading = re.sub(r"[^\w\- ]", "", section.partition("\n")[0].lower())
        if heading.replace(" ", "-") == anchor:
            return section
    raise AssertionError(f"benchmarks/RESULTS.md has no section {anchor}")


def test_figures_are_those_that_were_measured() -> None:
    """Each row of numbers links to the section of the results in which its figures stand."""
    table = README.partition("\n## Numbers\n")[2].partition("\n## ")[0]
    rows = re.findall(r"(?m)^\| .*benchmarks/RESULTS\.md#([\w-]+)\).* \| (.+) \|$", table)
    assert len(rows) == 6
    for anchor, figure in rows:
        section = _section_of_results(anchor)
        numbers = re.findall(r"\d[\d,.]*\d|\d", figure)
        assert numbers
        assert [number for number in numbers if number not in section] == [], figure


# Pages whose Python is run, with something that each has to print.
_PAGES_OF_PYTHON = {
    "docs/client-api.md": "length 8",
    "docs/errors.md": "",
    "docs/getting-started.md": "completion_tokens=64",
    "docs/streaming.md": "length 10",
    "docs/tenants.md": "length",
    "docs/tools.md": "length",
    "docs/tracing.md": "",
}
# Runs each file that is named, as a script, and asks the web backend once.
_RUN_FILES = """
import runpy, sys
for file in sys.argv[1:]:
    print("ran", file, flush=True)
    names = runpy.run_path(file, run_name="__main__")
    if "app" in names:
        from fastapi.testclient import TestClient
        with TestClient(names["app"]) as shop:
            print("answered", shop.get("/answer", params={"question": "rain"}).text)
"""


@pytest.mark.processes
def test_python_of_the_pages_runs(newcomer: Newcomer) -> None:
    """Every block runs as it stands, against the worker that the README starts."""
    newcomer.variables["TOKENBUS_ENGINE"] = "null"
    [line] = _block(WORKER).lines
    newcomer.type(line)
    newcomer.variables["TOKENBUS_REDIS_URL"] = newcomer.given["redis://127.0.0.1:6379/0"]
    files = []
    for number, block in enumerate(PYTHON):
        if block.page not in PYTHON_ELSEWHERE:
            files.append(f"{number}-{Path(block.page).stem}.py")
            (newcomer.home / files[-1]).write_text(block.text)
    (newcomer.home / "run_files.py").write_text(_RUN_FILES)
    said = newcomer.type(f"python -P run_files.py {' '.join(files)}")
    printed = dict(
        re.findall(r"^ran \d+-([\w-]+)\.py\n(.*?)(?=^ran |\Z)", said, re.MULTILINE | re.DOTALL)
    )
    for page, wanted in _PAGES_OF_PYTHON.items():
        assert wanted in printed[Path(page).stem], said
    assert len(printed["README"].partition("answered ")[2]) > 64, said
    newcomer.stop()


def test_excerpt_of_node_is_that_of_the_example() -> None:
    """What the page shows of a client without a library stands in the example that is run."""
    [block] = code_blocks("js")
    example = (ROOT / "examples" / "node_subscribe.mjs").read_text()
    for line in block.text.splitlines():
        code = line.partition(" // ")[0].rstrip()
        assert line.strip().startswith("//") or code in example, line
