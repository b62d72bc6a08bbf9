"""TLS: an authority of one's own, a certificate of the client's, and the name of the host."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import pytest_asyncio
from patience import PATIENCE_S
from servers.fixtures import server_binary
from servers.server_groups import free_port
from workers.null_workers import expected_text, follow, worker
from workers.stubs import until

from tokenbus.producer.answers import SERVER_ERRORS
from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.errors import ServerRefused
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

    def url(self, host: str = "localhost", **changed: str | None) -> str:
        """Return its address with the files of a client, but for what is changed or left out."""
        files = {
            "ssl_ca_certs": "ca.pem",
            "ssl_certfile": "client.pem",
            "ssl_keyfile": "client.key",
        }
        options = {name: str(self.folder / file) for name, file in files.items()} | changed
        pairs = "&".join(f"{name}={quote(value)}" for name, value in options.items() if value)
        return f"rediss://{host}:{self.port}/?{pairs}"


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
    """Run a server with TLS only."""
    with tempfile.TemporaryDirectory(prefix="tb-tls-") as name:
        server = TlsServer(Path(name), free_port())
        _make_certificates(server.folder)
        options = {"tls-port": server.port, "port": 0, "bind": "127.0.0.1"}
        options |= {"tls-cert-file": "server.pem", "tls-key-file": "server.key"}
        options |= {"tls-ca-cert-file": "ca.pem", "tls-auth-clients": "yes", "save": '""'}
        config = "\n".join(f"{option} {value}" for option, value in options.items())
        (server.folder / "server.conf").write_text(config)
        process = await asyncio.create_subprocess_exec(
            server_binary("redis"), "server.conf", cwd=name, stdout=subprocess.DEVNULL
        )
        redis = make_redis(server.url())

        async def answers() -> bool:
            assert process.returncode is None, "this server has no TLS"
            try:
                return bool(await redis.ping())
            except SERVER_ERRORS:
                return False

        await until(answers)
        await redis.aclose()
        yield server
        process.kill()
        await process.wait()


async def test_jobs_run_over_tls(tls: TlsServer, pool: str) -> None:
    """Client, reader, worker and its publishers, and arq, with certificates on both sides."""
    url = tls.url()
    async with (
        await AsyncClient.connect(url, pool) as client,
        worker(pool, url, null_tokens_per_s=1000),
    ):
        job = await client.submit("x", seed=1, max_tokens=20)
        assert (await follow(client, job)).text == expected_text(1, 20)
    arq = connect_arq(url, "arq:tls")
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
    with pytest.raises(ServerRefused, match="ssl_ca_certs") as caught:
        await open_server(tls.url(host, **found), retry_for_s=PATIENCE_S)
    assert caught.value.code == "TLS"


async def test_check_of_the_host_can_be_left_out(tls: TlsServer) -> None:
    """By an option of the URL, alone or with all checks."""
    for given in ({"ssl_check_hostname": "false"}, {"ssl_cert_reqs": "none"}):
        await (await open_server(tls.url("127.0.0.1", **given))).close()
