"""TLS: an authority of one's own, a certificate of the client's, and the name of the host."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from patience import PATIENCE_S
from redis.asyncio import Redis
from servers.fixtures import server_binary
from servers.ports import free_port
from workers.null_workers import expected_text, follow, worker
from workers.stubs import until

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ServerRefused, UrlInvalid
from tokenbus.producer.server.connection import make_redis, open_server
from tokenbus.worker.control.arq_worker import connect_arq

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.processes,
    pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl on PATH"),
]
_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


@dataclass(frozen=True, slots=True)
class TlsServer:
    """A server that takes clients with a certificate of its authority only."""

    folder: Path
    port: int
    sentinel_port: int

    def url(self, host: str = "localhost", **changed: str | None) -> str:
        """Return its address with the files of a client, but for what is changed or left out."""
        return f"rediss://{host}:{self.port}/?{self._query(changed)}"

    def by_sentinel(self, host: str = "localhost", **changed: str | None) -> str:
        """Return the same by way of its sentinel."""
        return f"rediss+sentinel://{host}:{self.sentinel_port}/bus?{self._query(changed)}"

    def _query(self, changed: dict[str, str | None]) -> str:
        files = {
            "ssl_ca_certs": "ca.pem",
            "ssl_certfile": "client.pem",
            "ssl_keyfile": "client.key",
        }
        options = {name: str(self.folder / file) for name, file in files.items()} | changed
        return "&".join(f"{name}={quote(value)}" for name, value in options.items() if value)


def _openssl(folder: Path, *words: str) -> None:
    command = ["openssl", *words]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=PATIENCE_S)


def _make_certificates(folder: Path) -> None:
    """Make an authority, and a certificate of it for the host `localhost` and for a client."""
    for name in ("ca", "other"):
        _openssl(
            folder,
            *("req", "-x509", *_KEY, "-subj", f"/CN={name}"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )
    for name, extension in (("server", "subjectAltName=DNS:localhost"), ("client", "")):
        signed_by = ("-CA", "ca.pem", "-CAkey", "ca.key")
        given = ("-addext", extension) if extension else ()
        _openssl(
            folder,
            *("req", "-x509", *_KEY, "-subj", f"/CN={name}", *signed_by, *given),
            *("-addext", "basicConstraints=critical,CA:FALSE"),
            *("-keyout", f"{name}.key", "-out", f"{name}.pem"),
        )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tls() -> AsyncIterator[TlsServer]:
    """Run a server with TLS only, and a sentinel that watches it."""
    with tempfile.TemporaryDirectory(prefix="tb-tls-") as name:
        server = TlsServer(Path(name), free_port(), free_port())
        _make_certificates(server.folder)
        watch: list[tuple[str, object]] = [
            ("sentinel", "resolve-hostnames yes"),
            ("sentinel", "announce-hostnames yes"),
        ]
        watch += [("sentinel", f"monitor bus localhost {server.port} 1")]
        async with (
            _running(server.folder, server.port, [("save", '""')]),
            _running(server.folder, server.sentinel_port, watch, "--sentinel"),
        ):
            for url in (server.url(), server.by_sentinel()):
                redis = make_redis(url)
                await until(partial(_answers, redis))
                await redis.aclose()
            yield server


@contextlib.asynccontextmanager
async def _running(
    folder: Path, port: int, more: list[tuple[str, object]], *words: str
) -> AsyncIterator[None]:
    """Run a server with TLS alone until the end of the context."""
    options = [("tls-port", port), ("port", 0), ("bind", "127.0.0.1"), ("tls-replication", "yes")]
    options += [("tls-cert-file", "server.pem"), ("tls-key-file", "server.key")]
    options += [("tls-ca-cert-file", "ca.pem"), ("tls-auth-clients", "yes"), *more]
    file = folder / f"{port}.conf"
    file.write_text("\n".join(f"{option} {value}" for option, value in options))
    process = await asyncio.create_subprocess_exec(
        server_binary("redis"), file, *words, cwd=folder, stdout=subprocess.DEVNULL
    )
    try:
        yield
        assert process.returncode is None, "this server has no TLS"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _answers(redis: Redis) -> bool:
    try:
        return bool(await redis.ping())
    except SERVER_ERRORS:
        return False


@pytest.mark.parametrize("is_watched", [False, True])
async def test_jobs_run_over_tls(tls: TlsServer, pool: str, is_watched: bool) -> None:
    """Client, reader, worker and its publishers, and arq, with certificates on both sides."""
    url = tls.by_sentinel() if is_watched else tls.url()
    async with (
        await AsyncClient.connect(url, pool) as client,
        worker(pool, url, null_tokens_per_s=1000),
    ):
        job = await client.submit("x", seed=1, max_tokens=20)
        assert (await follow(client, job)).text == expected_text(1, 20)
    arq = connect_arq(tls.url(), "arq:tls")
    assert await arq.ping()
    await arq.aclose(close_connection_pool=True)


@pytest.mark.parametrize(
    ("host", "changed"),
    [
        pytest.param("localhost", {"ssl_ca_certs": None}, id="unknown authority"),
        pytest.param("localhost", {"ssl_ca_certs": "other.pem"}, id="another authority"),
        pytest.param("127.0.0.1", {}, id="another host"),
        pytest.param("localhost", {"ssl_certfile": None, "ssl_keyfile": None}, id="no certificate"),
    ],
)
async def test_wrong_certificate_is_told_at_once(
    tls: TlsServer, host: str, changed: dict[str, str | None]
) -> None:
    """Nobody tries again what no time will mend, and the hint names the options."""
    found = {name: value and str(tls.folder / value) for name, value in changed.items()}
    for url in (tls.url(host, **found), tls.by_sentinel(host, **found)):
        with pytest.raises(ServerRefused, match="ssl_ca_certs") as caught:
            await open_server(url, retry_for_s=PATIENCE_S)
        assert caught.value.code == "TLS"


async def test_master_that_sentinels_name_is_checked_too(tls: TlsServer) -> None:
    """Named by an address that its certificate does not have, it is no master of ours."""
    ssl_files = make_redis(tls.url()).connection_pool.connection_kwargs
    sentinel: Any = Redis(ssl=True, **ssl_files | {"port": tls.sentinel_port})
    announce = ("SENTINEL", "CONFIG", "SET", "announce-hostnames")
    await sentinel.execute_command(*announce, "no")
    try:
        with pytest.raises(ServerRefused) as caught:
            await open_server(tls.by_sentinel(), retry_for_s=PATIENCE_S)
        assert caught.value.code == "TLS"
        url = tls.by_sentinel(ssl_check_hostname="false")
        await (await open_server(url)).close()
    finally:
        await sentinel.execute_command(*announce, "yes")
        await sentinel.aclose()


def _broken(folder: Path) -> dict[str, dict[str, str]]:
    """Make files that are no use, and return the options that name them."""
    for name in ("empty", "garbage"):
        (folder / f"{name}.pem").write_text("" if name == "empty" else "-----BEGIN X-----")
    _openssl(
        folder,
        *("pkey", "-in", "client.key", "-aes256", "-passout", "pass:hush", "-out", "locked.key"),
    )
    return {
        "No such file": {"ssl_ca_certs": "none.pem"},
        "it is no file": {"ssl_ca_certs": "."},
        "ssl_ca_certs: no certificate": {"ssl_ca_certs": "empty.pem"},
        "ssl_ca_certs: ": {"ssl_ca_certs": "garbage.pem"},
        "ssl_keyfile: key values mismatch": {"ssl_keyfile": "other.key"},
        "ssl_keyfile: the key is encrypted": {"ssl_keyfile": "locked.key"},
        "ssl_keyfile needs ssl_certfile": {"ssl_certfile": ""},
    }


async def test_file_of_no_use_is_told_at_once_and_by_its_option(tls: TlsServer) -> None:
    """Nobody waits for a server, or asks for a passphrase on the terminal."""
    for why, changed in _broken(tls.folder).items():
        found = {name: value and str(tls.folder / value) for name, value in changed.items()}
        for url in (tls.url(**found), tls.by_sentinel(**found)):
            with pytest.raises(UrlInvalid, match=why):
                await open_server(url, retry_for_s=PATIENCE_S)


async def test_check_of_the_host_can_be_left_out(tls: TlsServer) -> None:
    """By an option of the URL, alone or with all checks."""
    for given in ({"ssl_check_hostname": "false"}, {"ssl_cert_reqs": "none"}):
        await (await open_server(tls.url("127.0.0.1", **given))).close()
