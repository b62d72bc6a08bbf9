"""Clients of others against the gateway, their own code, with the demo model: `make clients`.

The clients are in environments of their own, of Python and of Node, which the variables
TOKENBUS_CLIENTS_PYTHON, TOKENBUS_CLIENTS_LLAMA and AI_SDK name; without one its tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from gateways.serving import COMMAND, serving
from patience import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).resolve().parent
EXAMPLES = HERE.parents[1] / "examples"
JS_CLIENT = HERE.parents[1] / "clients" / "js"
CHAT = HERE.parent / "support" / "clients" / "ai_chat.mjs"
PYTHON = os.environ.get("TOKENBUS_CLIENTS_PYTHON", "")
LLAMA = os.environ.get("TOKENBUS_CLIENTS_LLAMA", "")
AI_SDK = os.environ.get("AI_SDK", "")

pytestmark = [pytest.mark.clients, pytest.mark.processes]
needs_python = pytest.mark.skipif(not PYTHON, reason="make clients runs it")
needs_ai_sdk = pytest.mark.skipif(
    not AI_SDK or shutil.which("node") is None, reason="make clients runs it, with node on PATH"
)
needs_node = pytest.mark.skipif(shutil.which("node") is None, reason="no node on PATH")


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve the demo model."""
    folder = tmp_path_factory.mktemp("bus")
    with serving(folder, "smollm2-135m", "--dtype", "float32") as served:
        yield served


def _run(command: list[str | Path], folder: str | None = None, **environment: str) -> str:
    run = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout


STEPS = re.findall(r"^def ([a-z]\w+)\(client", (HERE / "sdk_openai.py").read_text(), re.MULTILINE)


@needs_python
@pytest.mark.parametrize("step", STEPS)
def test_client_of_openai(url: str, step: str) -> None:
    """Each part of the official client is served as it expects."""
    _run([PYTHON, HERE / "sdk_openai.py", step, f"{url}/v1"])


@needs_python
def test_litellm(url: str) -> None:
    """Its completions, streamed and not, are one text."""
    # It would ask the network for a list of prices.
    _run([PYTHON, HERE / "sdk_litellm.py", f"{url}/v1"], LITELLM_LOCAL_MODEL_COST_MAP="True")


@needs_python
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("openai_agent.py", r"stock\(.*\) = "),
        ("langchain_shop.py", r"stock \{"),
        ("openai_agents_shop.py", r"stock\("),
    ],
)
def test_example_runs_as_it_stands(url: str, name: str, printed: str) -> None:
    """Agents and chains call the tools of the toy shop."""
    said = _run([PYTHON, EXAMPLES / name], OPENAI_BASE_URL=f"{url}/v1")
    assert re.search(printed, said)


@pytest.mark.skipif(not LLAMA, reason="make clients runs it")
def test_example_of_llamaindex_runs_as_it_stands(url: str) -> None:
    """Its language model streams, and calls the tool of the toy shop."""
    said = _run([LLAMA, EXAMPLES / "llamaindex_shop.py"], OPENAI_BASE_URL=f"{url}/v1")
    assert "stock {" in said


@needs_ai_sdk
def test_ai_sdk_with_its_providers(url: str) -> None:
    """Texts, streams, tools and objects of the AI SDK; responses that refer to earlier ones."""
    _run(["node", HERE / "sdk_ai.mjs", f"{url}/v1"])


@pytest.fixture(scope="module")
def slow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Serve made-up tokens, so slowly that an answer can be left in its middle."""
    folder = tmp_path_factory.mktemp("slow")
    variables = {"TOKENBUS_ENGINE": "null", "TOKENBUS_NULL_TOKENS_PER_S": "60"}
    with serving(folder, "made-up", **variables) as served:
        yield served


def _chat(step: str, url: str, chat: str, **body: Any) -> dict[str, Any]:
    """Drive a chat of the AI SDK through a step; return what it had in the end."""
    said = _run(["node", CHAT, step, url, chat, json.dumps({"max_tokens": 90} | body)])
    told: dict[str, Any] = json.loads(said)
    return told


@needs_ai_sdk
def test_chat_that_is_reloaded_in_mid_answer_has_it_whole(slow_url: str) -> None:
    """The page after the reload has what the one before had, and the rest; then nothing runs."""
    told = _chat("reload", slow_url, "a chat/of mine")
    assert [status for status, _ in told["fetched"]] == [200, 200]
    assert {header for _, header in told["fetched"]} == {"v1"}
    assert told["status"] == "ready"
    assert told["text"].startswith(told["before"])
    assert len(told["text"].split()) == 90
    assert [part["type"] for part in told["parts"]] == ["step-start", "text"]
    assert told["parts"][1]["state"] == "done"
    assert told["finish"]["finishReason"] == "length"
    again = _chat("resume", slow_url, "a chat/of mine")
    assert again["fetched"] == [[204, None]]
    assert again["role"] == "user"


@needs_ai_sdk
def test_chat_that_is_stopped_keeps_what_it_had(slow_url: str) -> None:
    """The stop ends the answer at every reader, and there is nothing to resume."""
    told = _chat("stop", slow_url, "stopped")
    assert told["stopped"] == {"success": True, "stopped": True}
    assert told["status"] == "ready"
    assert 0 < len(told["text"].split()) < 90
    assert _chat("resume", slow_url, "stopped")["fetched"] == [[204, None]]


@needs_ai_sdk
def test_example_of_the_ai_sdk_runs_as_it_stands(slow_url: str) -> None:
    """The chat of the example has its whole answer after the reload."""
    said = _run(["node", EXAMPLES / "ai_sdk_chat.mjs"], folder=AI_SDK, GATEWAY=slow_url)
    assert "after the reload" in said


_JOBS = """
import { Tokenbus } from "INDEX";
const bus = new Tokenbus({ url: process.argv[1] });
const job = await bus.submit({ prompt: "rain", max_tokens: 40, seed: 7 });
const seen = [];
for await (const event of bus.stream(job.id)) if (seen.push(event.cursor) === 12) break;
let text = "";
for await (const event of bus.stream(job.id, { cursor: 12 })) {
  seen.push(event.cursor);
  text += event.text ?? "";
}
const whole = (await bus.get(job.id)).choices[0].text;
const other = await bus.submit({ prompt: "sand", max_tokens: 2000 });
await bus.cancel(other.id);
const read = async () => { for await (const _ of bus.content(other.id)); };
const failed = await read().catch((error) => error.reason);
console.log(JSON.stringify({ seen, ends: whole.endsWith(text), failed }));
"""


@needs_node
def test_client_for_node_resumes_and_cancels(slow_url: str) -> None:
    """The package of this repository reads a job on from a cursor, and cancels another."""
    code = _JOBS.replace("INDEX", (JS_CLIENT / "src" / "index.js").as_uri())
    said = _run(["node", "--input-type=module", "-e", code, slow_url])
    told = json.loads(said)
    assert told["seen"] == list(range(1, 42))
    assert told["ends"]
    assert told["failed"] == "cancelled"


@needs_python
def test_django_backend_resumes_after_the_last_event_id(tmp_path: Path) -> None:
    """The example of Django relays a job, and the rest of it to who comes back."""
    import http.client

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    folder = tmp_path / "bus"
    env = {"TOKENBUS_REDIS_URL": f"embedded://{folder}", "PORT": str(port)}
    env |= {"TOKENBUS_ENGINE": "null", "TOKENBUS_NULL_TOKENS_PER_S": "100"}
    commands = ([PYTHON, str(EXAMPLES / "django_sse.py")], [*COMMAND, "worker"])
    started = [subprocess.Popen(each, env=os.environ | env) for each in commands]

    def ask(method: str, path: str, body: str | None = None, **headers: str) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body, named)
        return connection.getresponse()

    try:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                response = ask("POST", "/jobs", json.dumps({"prompt": "rain", "max_tokens": 20}))
                break
            except ConnectionError:
                assert started[0].poll() is None, "the example ended"
                assert time.monotonic() < until
                time.sleep(0.1)
        path = f"/jobs/{json.load(response)['job_id']}/events"
        whole = ask("GET", path).read().decode()
        rest = ask("GET", path, Last_Event_ID="15").read().decode()
    finally:
        for process in started:
            process.terminate()
            process.wait(PATIENCE_S)
    assert whole.count("event: end") == rest.count("event: end") == 1
    assert min(map(int, re.findall(r"^id: (\d+)", rest, re.MULTILINE))) > 15
