"""Files and batches over HTTP: forms as clients send them, and batches from file to file."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from gateways import uploads
from gateways.doors import Door, door
from workers.batches import completion_line
from workers.null_workers import worker
from workers.stubs import until

from tokenbus.producer.gateway.access.caller import Caller
from tokenbus.producer.gateway.multipart import FormUpload, boundary_of
from tokenbus.producer.gateway.wire.api_error import ApiError
from tokenbus.worker.control.service import batch_service
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tokenbus.producer.server.embedded import EmbeddedServer

pytestmark = pytest.mark.asyncio(loop_scope="module")

KEYS = ["key-of-one-owner", "key-of-the-other"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def file_door(
    private_server: EmbeddedServer, module_pool: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Door]:
    """Run a worker, a gateway with keys and a place for files, and the batches of its pool."""
    folder = str(tmp_path_factory.mktemp("files"))
    given = {"gateway_api_keys": KEYS, "files_url": folder, "gateway_file_bytes": 2**20}
    async with (
        worker(module_pool, private_server.url, lease_ttl_s=60),
        door(private_server.url, module_pool, **given) as running,
    ):
        assert running.gateway is not None
        client = (await running.gateway.models.resolve(None, Caller())).client
        settings = ControlSettings.load(pool=module_pool)
        task = asyncio.create_task(batch_service(client, folder, settings).run())
        yield running
        task.cancel()
        await asyncio.wait([task])


async def upload(
    running: Door, content: bytes, key: str = KEYS[0], purpose: str | None = "batch", **more: Any
) -> Any:
    """Upload a file of the first owner, unless it is said whose; return status and body."""
    return await uploads.upload(running, content, key, purpose, **more)


async def test_file_comes_back_as_it_was_sent(file_door: Door) -> None:
    """It is told, listed, read and deleted; afterwards nobody knows it."""
    content = bytes(range(256)) * 3000 + b"\r\n--not the boundary\r\n"
    status, told = await upload(file_door, content)
    assert status == 200
    assert (told["object"], told["bytes"], told["filename"]) == ("file", len(content), "in ü.jsonl")
    path = f"/v1/files/{told['id']}"
    assert (await file_door.get(path, KEYS[0])).json == told
    async with file_door.open("GET", f"{path}/content", None, KEYS[0]) as reply:
        assert await reply.read() == content
    listed = (await file_door.get("/v1/files?limit=1", KEYS[0])).json
    assert (listed["data"], listed["last_id"]) == ([told], told["id"])
    for other in (told["id"], "file-none", "..%2f..%2fetc%2fpasswd"):
        for method, tail in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
            refused = await file_door.ask(method, f"/v1/files/{other}{tail}", None, KEYS[1])
            assert refused.status == 404, (method, other, tail)
    assert (await file_door.get("/v1/files", KEYS[1])).json["data"] == []
    assert (await file_door.ask("DELETE", path, None, KEYS[0])).json["deleted"] is True
    assert (await file_door.get(path, KEYS[0])).status == 404
    assert (await file_door.get("/v1/files")).status == 401


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ({"purpose": "vision"}, 400, "invalid_request"),
        ({"purpose": None}, 400, "invalid_request"),
        ({"content": b"x" * (2**20 + 1)}, 413, "file_too_large"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "1"},
            400,
            "invalid_form",
        ),
        ({"more": "x" * 20_000}, 400, "invalid_form"),
    ],
    ids=str,
)
async def test_upload_that_is_refused_leaves_no_file(
    file_door: Door, given: dict[str, Any], status: int, code: str
) -> None:
    """The error says what is wrong; the owner has the files of before."""
    before = (await file_door.get("/v1/files", KEYS[0])).json
    got, told = await upload(file_door, given.pop("content", b"x"), **given)
    assert (got, told["error"]["code"]) == (status, code)
    assert (await file_door.get("/v1/files", KEYS[0])).json == before


async def form_read(raw: bytes, size: int) -> tuple[bytes, dict[str, str], str | None]:
    """Read a form that comes in pieces of so many bytes."""

    async def body() -> AsyncIterator[bytes]:
        for start in range(0, len(raw), size):
            yield raw[start : start + size]

    form = FormUpload(body(), boundary_of("multipart/form-data; boundary=xyz"), "file")
    content = b"".join([chunk async for chunk in form.file_bytes()])
    return content, form.fields, form.filename


def part(disposition: str, content: bytes) -> bytes:
    """Return a part of a form."""
    head = f"--xyz\r\nContent-Disposition: form-data; {disposition}\r\nX-Other: y\r\n\r\n"
    return head.encode() + content + b"\r\n"


async def test_form_is_read_whatever_pieces_it_comes_in() -> None:
    """Boundaries across pieces, fields on both sides of the file, and bytes like a boundary."""
    content = b"\r\n--xy\r\n--xy-\r\n" + bytes(300)
    raw = (
        b"preamble"
        b"\r\n"
        + part('name="purpose"', b"batch")
        + part("name=file; filename*=utf-8''a%20%C3%BC", content)
        + part('name="late"', b"")
        + b"--xyz--\r\nepilogue"
    )
    for size in (1, 2, 3, 7, 64, len(raw)):
        read = await form_read(raw, size)
        assert read == (content, {"purpose": "batch", "late": ""}, "a ü")


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"--xyz",
        part('name="purpose"', b"batch"),
        part('name="file"; filename="a"', b"x")[:-2],
        part('other="x"', b"y") + b"--xyz--",
        part('name="file"; filename="a"', b"x") * 2 + b"--xyz--",
        b"--xyz\r\n" + b"x" * 20_000,
        b"--xyzabc\r\n\r\n",
    ],
    ids=lambda raw: str(len(raw)),
)
async def test_form_that_is_none_is_refused(raw: bytes) -> None:
    """What ends early, has no name, has two files or no end of its head is no form."""
    with pytest.raises(ApiError) as caught:
        await form_read(raw, 11)
    assert caught.value.status == 400


async def test_batch_runs_from_file_to_file(file_door: Door, module_pool: str) -> None:
    """Made, listed, ended, its answers read by its owner alone; chats and responses run as well."""
    lines = [completion_line(number, model=module_pool) for number in range(3)]
    # As editors of other systems write it: a mark at its beginning, lines that end in two.
    rows = "\ufeff" + "\r\n\r\n".join(map(json.dumps, lines))
    _, file = await upload(file_door, rows.encode())
    asked = {
        "input_file_id": file["id"],
        "endpoint": "/v1/completions",
        "completion_window": "24h",
        "metadata": {"shop": "7"},
        "output_expires_after": {"anchor": "created_at", "seconds": 7200},
        "plan": "b",
    }
    created = await file_door.post("/v1/batches", asked, KEYS[0])
    assert created.headers["X-Tokenbus-Ignored-Fields"] == "plan"
    made = created.json
    assert (made["object"], made["status"]) == ("batch", "validating")
    assert made["metadata"] == {"shop": "7"}
    path = f"/v1/batches/{made['id']}"

    async def is_done() -> bool:
        told = (await file_door.get(path, KEYS[0])).json
        return told["status"] not in ("validating", "in_progress", "finalizing")

    await until(is_done)
    ended = (await file_door.get(path, KEYS[0])).json
    assert ended["status"] == "completed"
    assert ended["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    assert (await file_door.get("/v1/batches", KEYS[0])).json["data"][0] == ended
    content = f"/v1/files/{ended['output_file_id']}/content"
    read = await file_door.get(content, KEYS[0])
    told = (await file_door.get(content.removesuffix("/content"), KEYS[0])).json
    assert told["expires_at"] - told["created_at"] == 7200
    rows_out = [json.loads(row) for row in read.text.splitlines()]
    assert {row["custom_id"] for row in rows_out} == {line["custom_id"] for line in lines}
    for method, where in (("GET", path), ("POST", f"{path}/cancel"), ("GET", content)):
        assert (await file_door.ask(method, where, None, KEYS[1])).status == 404
    assert (await file_door.get("/v1/batches", KEYS[1])).json["data"] == []
    refused = await file_door.post("/v1/batches", asked, KEYS[1])
    assert (refused.status, refused.error["param"]) == (400, "input_file_id")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input_file_id": None}, "input_file_id"),
        ({"input_file_id": "../x"}, "input_file_id"),
        ({"endpoint": "/v1/embeddings"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"completion_window": "365d"}, "completion_window"),
        ({"metadata": {"a": 1}}, "metadata"),
        ({"callback_url": "ftp://x"}, "callback_url"),
        ({"callback_url": 3}, "callback_url"),
        ({"output_expires_after": {"seconds": 7200}}, "output_expires_after.anchor"),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
        ),
    ],
    ids=str,
)
async def test_wrong_field_of_a_batch_is_named(
    file_door: Door, fields: dict[str, Any], param: str
) -> None:
    """400 with the field."""
    asked = {"input_file_id": "file-x", "endpoint": "/v1/completions", "completion_window": "24h"}
    told = await file_door.post("/v1/batches", asked | fields, KEYS[0])
    assert (told.status, told.error["param"]) == (400, param)


async def test_gateway_without_a_place_for_files_says_so(null_door: Door) -> None:
    """503 names the setting; everything else works."""
    told = await null_door.get("/v1/files")
    assert (told.status, told.error["code"]) == (503, "no_file_place")
