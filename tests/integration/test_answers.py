"""Every answer of the table, provoked: what worker, client, reader and control service did.

One server, worker, two clients and a control service live through all of them, one after the other.
What a real server can be made to answer comes from a real one; the rest from a proxy before it.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
from patience import PATIENCE_S, until_within
from redis.asyncio import Redis
from redis.exceptions import RedisError
from servers.fixtures import server_binary
from servers.mortal_server import MortalServer
from servers.wire_proxy import WireProxy
from workers.null_workers import Story, expected_text, until, worker

from tokenbus.producer.client.async_client import AsyncClient, Job
from tokenbus.producer.errors import (
    ProducerError,
    QueueFull,
    ServerError,
    ServerRefused,
    ServerUnreachable,
)
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.control.service import serve
from tokenbus.worker.control.settings import ControlSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from tokenbus.worker.supervisor import Worker

    Act = Callable[["Deployment"], Awaitable[None]]

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.processes]

POOL = "answers"
NUM_TOKENS, TOKENS_PER_S = 40, 200
# Two seconds after the server has recovered everybody is at work again: the longest pauses between
# tries are shorter. Worker and server may get a fifth of the turns that this process counts.
RECOVERY_S = 10.0
LEASE = {"lease_ttl_s": 2, "renew_interval_s": 0.1, "call_timeout_s": 1.0}
_OPTIONS: tuple[str, ...] = ("--enable-protected-configs", "yes", "--busy-reply-threshold", "20")
_OPTIONS += ("--enable-debug-command", "yes")
_PROMPT = "known-to-nobody-else"
_NUM_FILLERS, _LOAD_DELAY_US = 40_000, 20
_seeds = count(1)


@dataclass(slots=True)
class Deployment:
    """What lives through all answers; `patient` waits for the server, `hasty` does not."""

    server: MortalServer
    wire: WireProxy
    password_file: Path
    admin: Any
    worker: Worker
    patient: AsyncClient
    hasty: AsyncClient
    control: asyncio.Task[None]
    occupied: asyncio.Task[Any] | None = None

    async def submit(self, client: AsyncClient) -> tuple[int, Job]:
        """Submit a job whose text is known, with a webhook that the service can only record."""
        seed = next(_seeds)
        job = await client.submit(
            _PROMPT, seed=seed, max_tokens=NUM_TOKENS, callback_url="http://127.0.0.1:9/"
        )
        return seed, job


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["redis", pytest.param("valkey", marks=pytest.mark.slow)],
)
async def deployment(request: pytest.FixtureRequest) -> AsyncIterator[Deployment]:
    """Run a server behind a proxy, and on it a worker, two clients and a control service."""
    server = MortalServer(server_binary(request.param), _OPTIONS)
    await server.start()
    path = str(server.socket_path)
    password_file = server.socket_path.with_name("password")
    password_file.write_text("first\n")
    made = Redis(unix_socket_path=path)
    await made.execute_command(*["ACL", "SETUSER", "admin", "on", ">admin", "+@all", "~*", "&*"])  # type: ignore[no-untyped-call]
    await made.execute_command(*["ACL", "SETUSER", "default", "resetpass", ">first"])  # type: ignore[no-untyped-call]
    await made.aclose()
    admin: Any = Redis(unix_socket_path=path, username="admin", password="admin")
    hasty = ClientSettings(retry_for_s=0.2, call_timeout_s=0.5)
    patient = ClientSettings(retry_for_s=PATIENCE_S, call_timeout_s=1.0)
    async with WireProxy(server.socket_path) as wire, contextlib.AsyncExitStack() as stack:
        url = f"{wire.url}?password_file={password_file}"
        running = worker(POOL, url, **LEASE, null_tokens_per_s=TOKENS_PER_S, log_level="error")
        settings = ControlSettings(redis_url=url, pool=POOL, log_level="error", call_timeout_s=1.0)
        deployed = Deployment(
            server,
            wire,
            password_file,
            admin,
            await stack.enter_async_context(running),
            await stack.enter_async_context(await AsyncClient.connect(url, POOL, patient)),
            await stack.enter_async_context(await AsyncClient.connect(url, POOL, hasty)),
            asyncio.create_task(serve(settings)),
        )
        _, job = await deployed.submit(deployed.patient)
        await _called(deployed, job)
        yield deployed
        deployed.control.cancel()
        await asyncio.wait([deployed.control])
    await admin.aclose()
    server.close()


@dataclass(frozen=True, slots=True)
class Trouble:
    """A state of the server in which it answers `code`, and the ways there and back.

    `to_readers` is another code that those get who only read.
    """

    code: str
    begin: Act
    end: Act
    to_readers: str = ""


def _run(*commands: str) -> Act:
    async def act(deployment: Deployment) -> None:
        for command in commands:
            await deployment.admin.execute_command(*command.split())

    return act


_KILL = ("CLIENT KILL TYPE normal SKIPME yes", "CLIENT KILL TYPE pubsub")


async def _fill_disk(deployment: Deployment) -> None:
    """Let the server fail to save: no write is taken then."""
    folder = tempfile.mkdtemp(prefix="tb-gone-")
    await _run(f"CONFIG SET dir {folder}")(deployment)
    await asyncio.to_thread(Path(folder).rmdir)
    await deployment.admin.config_set("save", "3600 1000000")
    await _save(deployment, "err")


async def _free_disk(deployment: Deployment) -> None:
    await _run(f"CONFIG SET dir {deployment.server.socket_path.parent}")(deployment)
    await _save(deployment, "ok")
    await deployment.admin.config_set("save", "")


async def _save(deployment: Deployment, outcome: str) -> None:
    await deployment.admin.execute_command("BGSAVE")
    async with asyncio.timeout(PATIENCE_S):
        while True:
            state = await deployment.admin.info("persistence")
            if not state["rdb_bgsave_in_progress"] and state["rdb_last_bgsave_status"] == outcome:
                return
            await asyncio.sleep(0.01)


def _occupy(deployment: Deployment, *command: str) -> None:
    """Give the server a call that takes until somebody ends it."""
    path = str(deployment.server.socket_path)

    async def ask() -> None:
        made: Any = Redis(unix_socket_path=path, username="admin", password="admin")
        with contextlib.suppress(RedisError):
            await made.execute_command(*command)
        await made.aclose()

    deployment.occupied = asyncio.create_task(ask())


async def _spin(deployment: Deployment) -> None:
    _occupy(deployment, "EVAL", "while true do end", "0")


async def _stop_spinning(deployment: Deployment) -> None:
    assert deployment.occupied is not None
    await _run("SCRIPT KILL")(deployment)
    await deployment.occupied


async def _load(deployment: Deployment) -> None:
    """Let the server read its file again, so slowly that it lasts, as a large one does.

    It looks at its clients after every 1,024 commands.
    """
    for _ in range(_NUM_FILLERS // 5000):
        await deployment.admin.eval("for n = 1, 5000 do redis.call('SET', 'filler', n) end", 0)
    await _run(f"CONFIG SET key-load-delay {_LOAD_DELAY_US}")(deployment)
    _occupy(deployment, "DEBUG", "LOADAOF")


async def _stop_loading(deployment: Deployment) -> None:
    assert deployment.occupied is not None
    await _run("CONFIG SET key-load-delay 0")(deployment)
    await deployment.occupied


async def _rotate(deployment: Deployment) -> None:
    deployment.password_file.write_text("second\n")


def _answering(code: str, line: str = "") -> Trouble:
    """Let the proxy answer all commands by a line."""

    async def begin(deployment: Deployment) -> None:
        deployment.wire.answer_all(line or f"-{code} as a server says it")

    async def end(deployment: Deployment) -> None:
        deployment.wire.answer_all("")

    return Trouble(code, begin, end)


async def _cut(deployment: Deployment) -> None:
    deployment.wire.cut()


async def _silence(deployment: Deployment) -> None:
    deployment.wire.fall_silent()


async def _mend(deployment: Deployment) -> None:
    deployment.wire.mend()


_REPLICA = "REPLICAOF 127.0.0.1 1"
_STALE = "CONFIG SET replica-serve-stale-data"
_REAL = {
    "readonly": Trouble("READONLY", _run(_REPLICA), _run("REPLICAOF NO ONE")),
    "masterdown": Trouble(
        "READONLY",
        _run(f"{_STALE} no", _REPLICA),
        _run("REPLICAOF NO ONE", f"{_STALE} yes"),
        "MASTERDOWN",
    ),
    "noreplicas": Trouble(
        "NOREPLICAS",
        _run("CONFIG SET min-replicas-to-write 1"),
        _run("CONFIG SET min-replicas-to-write 0"),
    ),
    "misconf": Trouble("MISCONF", _fill_disk, _free_disk),
    "oom": Trouble("OOM", _run("CONFIG SET maxmemory 1"), _run("CONFIG SET maxmemory 0")),
    "busy": Trouble("BUSY", _spin, _stop_spinning),
    "loading": Trouble("LOADING", _load, _stop_loading),
    "noperm": Trouble(
        "NOPERM",
        _run("ACL SETUSER default -eval -evalsha -subscribe -xrevrange"),
        _run("ACL SETUSER default +@all"),
    ),
    "noperm_inside": Trouble(
        "NOPERM", _run("ACL SETUSER default -hset"), _run("ACL SETUSER default +@all")
    ),
    "wrongpass": Trouble(
        "WRONGPASS",
        _run("ACL SETUSER default resetpass >other", *_KILL),
        _run("ACL SETUSER default >first"),
    ),
    "rotated": Trouble("WRONGPASS", _run("ACL SETUSER default resetpass >second", *_KILL), _rotate),
    "maxclients": Trouble(
        "MAXCLIENTS",
        _run("CONFIG SET maxclients 1", *_KILL),
        _run("CONFIG SET maxclients 1000"),
    ),
    "unreachable": Trouble("UNREACHABLE", _cut, _mend),
    "timeout": Trouble("TIMEOUT", _silence, _mend),
}
_SAID = {
    "unblocked": _answering("UNBLOCKED", "-UNBLOCKED force unblock from blocking operation"),
    "unkillable": _answering("UNKILLABLE"),
    "protocol": _answering("PROTOCOL", "HTTP/1.1 400 Bad Request"),
    "unknown": _answering(
        "UNKNOWN", f"-ERR unknown command 'EVALSHA', with args beginning with: '{_PROMPT}'"
    ),
    "strange": _answering("STRANGE"),
}
_RARE = {
    code.split()[0].lower(): _answering(code)
    for code in (
        *("CLUSTERDOWN", "TRYAGAIN", "MOVED 1 127.0.0.1:1", "ASK 1 127.0.0.1:1"),
        *("CROSSSLOT", "NOSCRIPT", "EXECABORT", "NOTBUSY", "BUSYKEY", "WRONGTYPE", "NOGROUP"),
        *("DENIED", "IOERR", "REDIRECT 127.0.0.1:1", "NOMASTERLINK", "INPROG", "NOGOODSLAVE"),
    )
} | {
    "replied_protocol_error": _answering("PROTOCOL", "-ERR Protocol error: invalid bulk length"),
    "database": _answering("DATABASE", "-ERR DB index is out of range"),
    "proxy": _answering("UNREACHABLE", "-upstream failure"),
    "quota": _answering("LIMIT", "-ERR max daily request limit exceeded. Limit: 1, Usage: 1"),
    "list": _answering("DENIED", "-ERR client ip is not in whitelist"),
    "err": _answering("ERR"),
}
_SLOW = pytest.mark.slow
TROUBLES = [pytest.param(each, id=name) for name, each in (_REAL | _SAID).items()]
TROUBLES += [pytest.param(each, id=name, marks=_SLOW) for name, each in _RARE.items()]


async def _read(client: AsyncClient, job: Job, is_over: asyncio.Event) -> Story:
    """Follow a job to its end; a reader whose stream was refused goes on after the trouble."""
    story = Story(job.job_id)
    while story.finish is None:
        try:
            async with contextlib.aclosing(client.stream(job, story.last)) as stream:
                async for event in stream:
                    story.see(event)
        except ServerRefused as error:
            _check_error(error)
            await is_over.wait()
    return story


async def _called(deployment: Deployment, job: Job) -> None:
    """Wait until the service has recorded a try of the job's webhook."""
    async with asyncio.timeout(PATIENCE_S):
        while not (hook := await deployment.patient.webhook(job)) or not hook.tries:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def _check_error(error: BaseException) -> None:
    """An error that left a client is one of ours, and quotes nothing of the call anywhere."""
    assert isinstance(error, ProducerError)
    found: BaseException | None = error
    while found is not None:
        for text in (str(found), repr(found), repr(vars(found))):
            assert _PROMPT not in text
        found = found.__cause__ or found.__context__


async def _refused(deployment: Deployment, trouble: Trouble) -> ProducerError:
    """Return what a hasty client is told, once the trouble has begun.

    A connection that the server closes may be seen before what it said, and on a busy machine its
    silence. What occupies the server may be over before anybody asks: then it begins anew.
    """
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await deployment.submit(deployment.hasty)
            except QueueFull as error:
                return error
            except ServerError as error:
                if error.code not in ("UNREACHABLE", "TIMEOUT") or trouble.code == error.code:
                    return error
            else:
                if deployment.occupied is not None and deployment.occupied.done():
                    await trouble.begin(deployment)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_answer_ends_nobody_and_everybody_goes_on(
    deployment: Deployment, trouble: Trouble
) -> None:
    """The client is told code and hint; worker, reader and service wait, and go on within 2 s."""
    is_over = asyncio.Event()
    seed, job = await deployment.submit(deployment.patient)
    reading = asyncio.create_task(_read(deployment.patient, job, is_over))
    await until(lambda: deployment.worker.num_held > 0 or reading.done())
    await trouble.begin(deployment)
    error = await _refused(deployment, trouble)
    _check_error(error)
    if isinstance(error, ServerError):
        assert error.code == trouble.code.split()[0]
        assert error.hint in str(error)
    else:
        assert trouble.code == "OOM"
    if trouble.to_readers:
        with pytest.raises(ServerUnreachable) as unread:
            await deployment.hasty.result("nobody-knows-it")
        assert unread.value.code == trouble.to_readers
    assert not deployment.worker.has_ended
    assert not deployment.control.done()
    await trouble.end(deployment)
    is_over.set()

    later_seed, later = await deployment.submit(deployment.patient)
    following = asyncio.create_task(_read(deployment.patient, later, is_over))
    await until_within(following.done, RECOVERY_S + NUM_TOKENS / TOKENS_PER_S)
    assert following.result().text == expected_text(later_seed, NUM_TOKENS)
    async with asyncio.timeout(PATIENCE_S):
        assert (await reading).text == expected_text(seed, NUM_TOKENS)
        await _called(deployment, later)
    assert not deployment.worker.has_ended
    assert not deployment.control.done()


async def _finishes(client: AsyncClient) -> None:
    """Submit a job and see its whole text within the time that is promised."""
    seed = next(_seeds)
    job = await client.submit(_PROMPT, seed=seed, max_tokens=NUM_TOKENS)
    reading = asyncio.create_task(_read(client, job, asyncio.Event()))
    await until_within(reading.done, RECOVERY_S + NUM_TOKENS / TOKENS_PER_S)
    assert reading.result().text == expected_text(seed, NUM_TOKENS)


async def test_wait_that_the_server_ends_by_an_error_is_begun_again(
    deployment: Deployment,
) -> None:
    """UNBLOCKED, as a server says to those that wait when it becomes a replica."""
    for _ in range(3):
        blocked: list[dict[str, str]] = []
        async with asyncio.timeout(PATIENCE_S):
            while not blocked:
                blocked = [
                    one for one in await deployment.admin.client_list() if one["cmd"] == "blpop"
                ]
        for one in blocked:
            await deployment.admin.execute_command("CLIENT", "UNBLOCK", one["id"], "ERROR")
    await _finishes(deployment.patient)
    assert not deployment.worker.has_ended


async def test_password_that_is_set_at_run_time_is_asked_for(deployment: Deployment) -> None:
    """NOAUTH: a client that gives none is told at once, a worker waits until none is asked for."""
    url, password = deployment.wire.url, deployment.password_file.read_text().strip()
    for value in (password, ""):
        await deployment.admin.config_set("requirepass", value)
    async with (
        worker("open", url, **LEASE, null_tokens_per_s=TOKENS_PER_S, log_level="error") as running,
        await AsyncClient.connect(url, "open", deployment.patient._settings) as client,
    ):
        await _finishes(client)
        await _run(f"CONFIG SET requirepass {password}", *_KILL)(deployment)
        with pytest.raises(ServerRefused, match="TOKENBUS_REDIS_URL") as caught:
            await client.submit(_PROMPT)
        assert caught.value.code == "NOAUTH"
        with pytest.raises(ServerRefused):
            await AsyncClient.connect(url, "open")
        assert not running.has_ended
        await deployment.admin.config_set("requirepass", "")
        await _finishes(client)
        assert not running.has_ended
    await _run(f"CONFIG SET requirepass {password}", *_KILL)(deployment)
    await _finishes(deployment.patient)
