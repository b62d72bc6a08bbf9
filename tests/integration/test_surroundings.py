"""Programs around the clients: the files of docs/clients.md, run as their users run them."""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from patience import PATIENCE_S
from servers.fixtures import server_binary
from workers.null_workers import worker
from workers.stubs import until

from tokenbus.producer.server.embedded import start_private

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.processes, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients.md"
FILES = {
    block.partition("\n")[0].removeprefix("# "): block.partition("\n")[2]
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
}
NUM_WORKERS = 2


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shop() -> AsyncIterator[Path]:
    """Run server and worker, and give a folder with the files and a short name."""
    server = start_private(server_binary("redis"))
    folder = Path(tempfile.mkdtemp(prefix="tb-"))
    for name, text in FILES.items():
        if name.endswith(".py"):
            (folder / name).write_text(text)
    # Celery's transport for Redis does not go with the redis-py of the other tests.
    (folder / "shop_broker.py").write_text(
        f"broker_url = 'filesystem://'\nresult_backend = 'file://{folder}'\n"
        "broker_transport_options = dict.fromkeys("
        f"('data_folder_in', 'data_folder_out', 'control_folder'), '{folder}')\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENBUS_REDIS_URL", server.url)
        async with worker("default", server.url):
            yield folder
    shutil.rmtree(folder)
    server.close()


def _need(*modules: str) -> None:
    """Skip where a package is not installed."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@asynccontextmanager
async def _running(folder: Path, *words: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run `python -m words` in the folder, and stop it as its operators do."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", *words), cwd=folder, env=os.environ | {"PYTHONPATH": path}
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(PATIENCE_S):
                await process.wait()
        finally:
            if process.returncode is None:
                process.kill()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Connect to the path."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE_S)
        self.sock.connect(str(self._path))


def _text(path: Path, product: str) -> str:
    """Ask the shop for a text."""
    connection = _UnixConnection(path)
    try:
        connection.request("GET", f"/describe/{product}")
        response = connection.getresponse()
        assert response.status == 200
        found: str = json.loads(response.read())["text"]
        return found
    finally:
        connection.close()


@pytest.mark.parametrize("preload", [[], ["--preload"]], ids=["late", "preload"])
@pytest.mark.parametrize(
    ("module", "kind"),
    [("shop_asgi", "uvicorn_worker.UvicornWorker"), ("shop_wsgi", "gthread")],
)
async def test_web_server_answers_with_texts(
    shop: Path, module: str, kind: str, preload: list[str]
) -> None:
    """Two processes, each with its client, at sixteen requests at once."""
    _need("gunicorn", "uvicorn_worker" if "uvicorn" in kind else "gunicorn")
    path = shop / f"{module}-{len(preload)}.sock"
    command = ["gunicorn", "--bind", f"unix:{path}", "-k", kind, *preload, f"{module}:app"]
    command += ["--workers", str(NUM_WORKERS), "--log-level", "error", "--threads", "4"]
    async with _running(shop, *command) as process:
        await until(lambda: _is_there(path, process))
        products = [f"lamp-{number}" for number in range(16)]
        asked = (asyncio.to_thread(_text, path, product) for product in products)
        assert all(await asyncio.gather(*asked))


async def _is_there(path: Path, process: asyncio.subprocess.Process) -> bool:
    assert process.returncode is None, "it did not start"
    return await asyncio.to_thread(path.exists)


async def test_asynchronous_client_of_the_module_is_told(shop: Path) -> None:
    """Connected while the module is loaded, it belongs to a loop that has ended."""
    _need("gunicorn", "uvicorn_worker")
    code = FILES["shop_asgi.py"].replace(
        "@asynccontextmanager", "import asyncio\n\nbus = asyncio.run(AsyncClient.connect())\n"
    )
    code = code.replace("async with await AsyncClient.connect() as app.state.bus:\n        ", "")
    code = code.replace("FastAPI(lifespan=lifespan)", "FastAPI()").replace("app.state.bus", "bus")
    code += "\n\n@app.exception_handler(RuntimeError)\nasync def tell(request, error):\n"
    code += "    from fastapi.responses import JSONResponse\n"
    code += "    return JSONResponse({'text': type(error).__name__ + str(error)})\n"
    (shop / "shop_wrong.py").write_text(code)
    path = shop / "wrong.sock"
    kind = "uvicorn_worker.UvicornWorker"
    command = ["gunicorn", "--bind", f"unix:{path}", "-k", kind, "--log-level", "critical"]
    async with _running(shop, *command, "shop_wrong:app") as process:
        await until(lambda: _is_there(path, process))
        text = await asyncio.to_thread(_text, path, "lamp")
    assert text.startswith("WrongEventLoop")
    assert "which is closed" in text


@pytest.mark.parametrize("kind", ["prefork", "threads", "solo", "gevent"])
async def test_celery_tasks_have_a_client(shop: Path, kind: str) -> None:
    """Tasks in every kind of pool; one that is sent again is the same job."""
    _need("celery", *(["gevent"] if kind == "gevent" else []))
    queue = f"shop-{kind}"
    ask = (
        "import shop_tasks as s;"
        f"ask = lambda name, key: s.describe.apply_async((name,), task_id=key, queue={queue!r});"
        f"asked = [ask(f'lamp-{{i}}', f'{kind}-{{i}}') for i in range(8)];"
        f"texts = [each.get(timeout={PATIENCE_S}) for each in asked];"
        f"again = ask('lamp-0', '{kind}-0').get(timeout={PATIENCE_S});"
        "assert all(texts) and again == texts[0]; print('done')"
    )
    words = ["celery", "-A", "shop_tasks", "worker", "--pool", kind, "--concurrency", "2"]
    async with _running(shop, *words, "-Q", queue, "--loglevel", "ERROR"):
        path = os.pathsep.join(filter(None, (str(shop), os.environ.get("PYTHONPATH"))))
        asking = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-c", ask),
            env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(PATIENCE_S):
            printed, _ = await asking.communicate()
    assert printed == b"done\n"


async def test_agent_of_the_page_reads_messages(shop: Path) -> None:
    """A worker without a model answers in words: no call, and the answer is cut."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "shop_agent.py"), cwd=shop, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        printed, _ = await running.communicate()
    *told, reason = printed.decode().splitlines()
    assert (running.returncode, reason) == (0, "length")
    assert told


async def test_notebook_runs_both_clients(shop: Path) -> None:
    """Cells of one kernel share a loop, so that a client lives from one to the next."""
    _need("nbclient", "ipykernel")
    script = shop / "notebook.py"
    script.write_text(
        "import json, sys, nbformat\n"
        "from nbclient import NotebookClient\n"
        "cells = json.load(sys.stdin)\n"
        "book = nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_code_cell, cells)))\n"
        f"NotebookClient(book, timeout={PATIENCE_S:.0f}).execute()\n"
        "for cell in book.cells:\n"
        "    for output in cell.outputs:\n"
        "        print(output.get('text', output), end='')\n"
    )
    cells = FILES["cells, parted by an empty line"].strip().split("\n\n")
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", script), cwd=shop, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(PATIENCE_S):
        printed, _ = await running.communicate(json.dumps(cells).encode())
    text, _, reason = printed.decode().strip().rpartition("length")
    assert (running.returncode, reason) == (0, "")
    assert text
