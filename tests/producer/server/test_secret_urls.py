"""Passwords of server URLs: none is shown, however it is written and wherever it stands.

The first of the drawn passwords go with every run, all of them with the slow one.
"""

from __future__ import annotations

import os
import random
import string
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
from patience import PATIENCE_S
from servers.embedded_folder import guards_in, servers_in

from tokenbus.producer.commands import cli
from tokenbus.producer.commands.watching import status
from tokenbus.producer.errors import ServerUnreachable, UrlInvalid
from tokenbus.producer.server.connection import Server, make_redis, open_server
from tokenbus.producer.server.embedded import join_shared
from tokenbus.producer.server.secret_env import without_secrets
from tokenbus.producer.server.shown_url import hide_in_text, hide_password
from tokenbus.producer.server.tls_files import check_tls_files
from tokenbus.producer.server.url import SentinelUrl, ServerUrl
from tokenbus.producer.settings import ClientSettings
from tokenbus.worker.bench import arguments
from tokenbus.worker.control.arq_worker import connect_arq
from tokenbus.worker.control.settings import ControlSettings
from tokenbus.worker.errors import SettingsInvalid
from tokenbus.worker.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Iterator

NUM_PASSWORDS, NUM_QUICK = 200, 12
# Letters beyond ASCII, among them some that turn into / ? # @ : when they are normalised.
BEYOND = "äß€日本語😀\u2100\uff0f\uff1f\uff03\uff20\uff1a"
ALPHABET = string.ascii_letters + string.digits + string.punctuation + " " + BEYOND
# So long a part of a password is a leak, and no word of our messages by chance.
LEAK = 5


def drawn() -> list[str]:
    """Draw the passwords; every one begins with another special character."""
    rng = random.Random(20)
    made = []
    for number in range(NUM_PASSWORDS):
        first = (string.punctuation + BEYOND)[number % len(string.punctuation + BEYOND)]
        made.append(first + "".join(rng.choice(ALPHABET) for _ in range(19)))
    return made


PASSWORDS = [
    pytest.param(password, id=str(number), marks=[pytest.mark.slow] if number >= NUM_QUICK else [])
    for number, password in enumerate(drawn())
]


def spellings(password: str) -> Iterator[str]:
    """Write URLs with the password, as it is and encoded, right ones and wrong ones."""
    for text in (password, quote(password, safe="")):
        for scheme in ("redis", "rediss", "redis+cluster", "nonsense"):
            yield f"{scheme}://:{text}@127.0.0.1:1/0"
            yield f"{scheme}://me:{text}@127.0.0.1:1/0?decode_responses=true"
            yield f"{scheme}://me:{text}@127.0.0.1:first/0"
        yield f"redis+sentinel://me:{text}@127.0.0.1:1/bus"
        yield f"redis+sentinel://127.0.0.1:1/bus?sentinel_password={text}"
        yield f"unix://:{text}@/nowhere/s"
        yield f"unix:///nowhere/s?password={text}"
        yield f"unix:///nowhere/s?password={text}&db=x"
        yield f"redis://127.0.0.1:1/0?password={text}&protocol=3"
        yield f"embedded://:{text}@/nowhere"
        yield f"redis:/:{text}@127.0.0.1:1/0"
        yield f"redis:me:{text}@127.0.0.1:1/0"
        yield f"me:{text}@127.0.0.1:1/0"
        # Not where a URL has it; what follows an @ is its host.
        bare = text.replace("@", "%40")
        yield f"redis://127.0.0.1:1/{bare}"
        yield f"redis+sentinel://127.0.0.1:1/bus/{bare}"
        yield f"redis://h;password={bare}"
        yield f"redis://h:1,password={bare}"
        yield f"redis://h -a {bare}"
        yield f"redis://me:{bare}"
        yield f"unix://me:{bare}"
        yield f"unix://me:/{bare}"
        yield f"unix:///nowhere/s&password={bare}"
        yield f"redis://127.0.0.1:1/0?db=1?password={bare}"
        yield f"h:1,password={bare},ssl=True"
        yield f"redis+sentinel://127.0.0.1:1,..:1/bus?sentinel_password={text}"
        yield f"rediss://me:{text}@h?ssl_keyfile=/nowhere&ssl_ca_certs=/nowhere"


def assert_hidden(password: str, *texts: str) -> None:
    """Look for parts of the password, as it is, escaped and encoded."""
    for form in {password, quote(password, safe=""), repr(password)[1:-1]}:
        parts = {form[at : at + LEAK] for at in range(len(form) - LEAK + 1)}
        for text in texts:
            assert not [part for part in parts if part in text], text


def told(error: BaseException) -> Iterator[str]:
    """Yield what an error and everything that led to it say."""
    seen: list[BaseException] = [error]
    for each in seen:
        yield from (str(each), repr(each))
        seen += [e for e in (each.__cause__, each.__context__) if e is not None and e not in seen]


@pytest.mark.parametrize("password", PASSWORDS)
def test_no_password_is_shown_however_it_is_written(
    password: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Texts, errors with their causes, objects, settings and commands: no part of it anywhere."""
    monkeypatch.setattr(status, "RETRY_FOR_S", 0.0)
    for url in spellings(password):
        shown = [hide_password(url), hide_in_text(f"unrecognized arguments: {url}")]
        shown.append(hide_in_text(f"unrecognized arguments: --password {password}"))
        shown.append(hide_in_text(f"unrecognized arguments: --pass={password}"))
        try:
            parsed = ServerUrl.parse(url)
            redis = make_redis(url)
            shown += [str(parsed), repr(parsed), repr(redis), repr(Server(parsed, redis, url))]
        except UrlInvalid as error:
            shown += told(error)
        try:
            check_tls_files(ServerUrl.parse(url))
        except UrlInvalid as error:
            shown += told(error)
        try:
            connect_arq(url, "queue")
        except UrlInvalid as error:
            shown += told(error)
        assert_hidden(password, *shown)
    for url in (f"redis://:{password}@127.0.0.1:1/0", f"unix:///nowhere/s?password={password}"):
        worker = WorkerSettings.load(redis_url=url)
        control = ControlSettings.load(redis_url=url, arq_redis_url=url)
        assert_hidden(password, repr(ClientSettings(redis_url=url)), repr(worker), repr(control))
        with pytest.raises(SettingsInvalid) as caught:
            WorkerSettings.load(redis_url=url, pool=url)
        assert_hidden(password, *told(caught.value))
        assert cli.main(["status", "--redis", url]) in (1, 2)
        with pytest.raises(SystemExit):
            cli.main(["status", url])
        with pytest.raises(SystemExit):
            cli.main(["bench", "pool", "--jobs", "x", url])
        commands = [("--redis", url), (f"--redis={url}",)]
        shown = []
        monkeypatch.setattr(arguments, "run_pool_bench", lambda _, command: " ".join(command))
        for words in commands:
            shown.append(str(arguments.run_bench(["--jobs", "1", *words])))
        written = capsys.readouterr()
        assert_hidden(password, written.out, written.err, *shown)


@pytest.mark.parametrize("password", PASSWORDS)
def test_encoded_password_arrives_as_it_is(password: str) -> None:
    """What is percent-encoded reaches the client of every kind of server unchanged."""
    encoded = quote(password, safe="")
    for url in (f"redis://:{encoded}@h", f"unix:///s?password={encoded}", f"unix://:{encoded}@/s"):
        assert ServerUrl.parse(url).client_arguments()[1]["password"] == password
    assert SentinelUrl.parse(f"redis+sentinel://:{encoded}@h/bus").password == password


@pytest.mark.parametrize("password", ["a#b", "a/b", "a?b", "x/y@z", "1#2?3/4"])
def test_password_that_ends_the_host_early_is_told_how_to_write_it(password: str) -> None:
    """The three characters that a URL reads otherwise are named with their codes."""
    with pytest.raises(UrlInvalid, match=r"%2F, . as %3F, # as %23") as caught:
        ServerUrl.parse(f"redis://me:{password}@host:6379/0")
    assert "redis://***@host:6379/0" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://.h", "no host name"), ("redis://a..b:1", "no host name"),
        (f"rediss://{'a' * 64}.com", "no host name"), ("redis://h%00st", "no host name"),
        ("redis://h%20st", "no host name"), ("redis+cluster://\u3002x", "no host name"),
        ("redis+sentinel://h,a..b/bus", "no host name"), ("redis://[zz]:1", "no IPv6 address"),
        ("redis://[1.2.3.4]", "no IPv6 address"), ("redis://%ff", "host is no UTF-8"),
        ("redis://:%ff@h", "password is no UTF-8"), ("redis://%c3:a@h", "user name is no UTF-8"),
        ("redis://h?password=%ff", "password its value is no UTF-8"),
        ("redis+sentinel://h/%ff", "master is no UTF-8"),
        ("unix:///tmp/%00", "NUL"), ("embedded:///tmp/a%00b", "NUL"),
        ("redis://h?password_file=/%00", "password_file must not hold a NUL"),
        ("redis://::1:6379", "IPv6 address stands in brackets"),
        ("redis://h/2?db=1", "one database in its path and another"),
        ("redis://:a@h?password=b", "a password before its host and another"),
        ("redis://a@h?username=b", "a username before its host and another"),
        (f"unix:///{'x' * 107}", "more than the 107 bytes"),
        ("embedded:///~/bus", "~ is no home"), ("unix:///~me/bus", "~ is no home"),
        ("redis+sentinel://h/bus?sentinel_password=a&sentinel_password_file=/b", "gives both"),
    ],
)  # fmt: skip
def test_place_that_is_none_is_told_at_once(url: str, why: str) -> None:
    """Nobody waits for a server at what no resolver can be asked for."""
    with pytest.raises(UrlInvalid, match=why):
        ServerUrl.parse(url)


@pytest.mark.parametrize(
    "url",
    ["redis://my_redis:1", "redis://h.", "redis://b\u00fccher.example", "redis://[::1]:1",
     "redis://[fe80::1%25eth0]:1", "redis://1.2.3.4", "unix:///tmp/%ff", "embedded:///tmp/%ff"],
)  # fmt: skip
def test_place_that_may_be_one_passes(url: str) -> None:
    """Names that compose gives, full stops at the end, other scripts, zones, paths of any bytes."""
    assert str(ServerUrl.parse(url)) == url


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("decode_responses=true", "decode_responses is unknown"),
        ("protocol=3", "protocol is unknown"),
        ("retry_on_timeout=yes", "retry_on_timeout is unknown"),
        ("ssl_ca_certs=/ca.pem", "ssl_ca_certs is unknown"),
        ("db=first", "db has to be a whole number"),
        ("db=-1", "db has to be a whole number"),
        ("db=٣", "db has to be a whole number"),
        ("socket_timeout=soon", "socket_timeout has to be a number of seconds"),
        ("socket_timeout=inf", "socket_timeout has to be a number of seconds"),
        ("socket_timeout=1e999", "socket_timeout has to be a number of seconds"),
        ("socket_keepalive=maybe", "socket_keepalive has to be true or false"),
        ("db=1&db=2", "db is given twice"),
        ("password=", "password must not be empty"),
        ("=1", "without a name"),
    ],
)
def test_option_that_is_unknown_or_ill_typed_is_named(
    query: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and code 2, on the command line too."""
    url = f"redis://127.0.0.1:1/0?{query}"
    assert cli.main(["status", "--redis", url]) == 2
    message = capsys.readouterr().err
    assert hint in message
    assert message.count("\n") == 1
    with pytest.raises(UrlInvalid, match="option"):
        connect_arq(url, "queue")


async def test_byte_that_is_no_utf8_reaches_the_path_of_a_socket() -> None:
    """Folders may be named by any bytes."""
    path = make_redis("unix:///tmp/%ff").connection_pool.connection_kwargs["path"]
    assert os.fsencode(path) == b"/tmp/\xff"


async def test_options_reach_the_connection() -> None:
    """What is allowed means what it says."""
    redis = make_redis("redis://h:7/3?client_name=shop&socket_timeout=2.5&health_check_interval=9")
    given = redis.connection_pool.connection_kwargs
    wanted = {"host": "h", "port": 7, "db": 3, "client_name": "shop"}
    assert wanted.items() <= given.items()
    assert (given["socket_timeout"], given["health_check_interval"]) == (2.5, 9)
    assert make_redis("unix:///s%23?db=2").connection_pool.connection_kwargs["path"] == "/s#"
    assert make_redis("redis://[::1]:7").connection_pool.connection_kwargs["host"] == "::1"


@pytest.mark.processes
async def test_embedded_server_in_a_folder_of_any_name(tmp_path: Path) -> None:
    """Characters that mean something in a URL are a part of a folder's name like others."""
    url = f"embedded://{quote(str(tmp_path / 'a#b?c%20@d'))}"
    server = await open_server(url)
    assert await server.redis.ping()
    await server.close()
    assert (tmp_path / "a#b?c%20@d").is_dir()


async def test_unreachable_server_hides_the_password_in_all_causes() -> None:
    """The last error and every one below it."""
    password = drawn()[0]
    with pytest.raises(ServerUnreachable) as caught:
        await open_server(f"redis://:{quote(password, safe='')}@127.0.0.1:1/0", retry_for_s=0)
    assert_hidden(password, *told(caught.value))


def test_environment_of_children_has_no_secrets() -> None:
    """Whatever the case of the variables; all others stay."""
    given = {"TOKENBUS_REDIS_URL": "x", "tokenbus_arq_redis_url": "x", "TOKENBUS_CACHE": "c"}
    assert without_secrets(given | {"TOKENBUS_WEBHOOK_KEYS": "{}"}) == {"TOKENBUS_CACHE": "c"}


@pytest.mark.processes
def test_guard_of_an_embedded_server_inherits_no_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither guard nor server, which outlive their first client, have it in their environment."""
    monkeypatch.setenv("TOKENBUS_REDIS_URL", "redis://:hush-hush@h")
    server = join_shared(tmp_path)
    try:
        [guard], [running] = guards_in(tmp_path), servers_in(tmp_path)
        for process in (Path(f"/proc/{guard}"), Path(f"/proc/{running}")):
            told = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
            assert b"hush-hush" not in told
    finally:
        server.close()


@pytest.mark.processes
def test_help_says_where_a_password_is_safe() -> None:
    """The option's help names the variable and why."""
    command = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "status", "--help"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S)
    text = " ".join(run.stdout.split())
    assert "can read a password given here in ps, not one in TOKENBUS_REDIS_URL" in text
