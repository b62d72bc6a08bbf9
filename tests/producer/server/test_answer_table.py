"""The table of answers: every word of a server has its row, and no row tells an argument."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from redis._parsers.base import BaseParser
from redis.exceptions import (
    AuthenticationError,
    BusyLoadingError,
    InvalidResponse,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import ConnectionError as RedisConnectionError

from tokenbus.producer.answers import Verdict, answer_of, without_arguments
from tokenbus.producer.server.connection import typed
from tokenbus.producer.server.url import ServerUrl

QUOTED = "quoted-argument"
WAIT = """
    LOADING BUSY UNKILLABLE OOM MISCONF IOERR NOSCRIPT EXECABORT READONLY UNBLOCKED REDIRECT
    MASTERDOWN NOMASTERLINK NOREPLICAS CLUSTERDOWN TRYAGAIN IDONTKNOW INPROG NOGOODSLAVE NOQUORUM
"""
REFUSE = "WRONGPASS NOPERM DENIED NOPROTO CROSSSLOT"
FAIL = "WRONGTYPE NOGROUP BUSYGROUP BUSYKEY NOTBUSY ERR NEVERHEARD"
WORDS = [(word, Verdict.WAIT) for word in WAIT.split()]
WORDS += [(word, Verdict.REFUSE) for word in REFUSE.split()]
WORDS += [(word, Verdict.FAIL) for word in FAIL.split()]
SAID = [
    ("NOAUTH Authentication required.", "NOAUTH"),
    ("NOAUTH HELLO must be called with the client already authenticated", "NOAUTH"),
    ("ERR max number of clients reached", "MAXCLIENTS"),
    ("ERR max number of clients + cluster connections reached", "MAXCLIENTS"),
    ("ERR Protocol error: invalid bulk length", "PROTOCOL"),
    ("ERR Protocol error: unauthenticated multibulk length", "NOAUTH"),
    ("ERR Protocol error: unauthenticated bulk length", "NOAUTH"),
    ("ERR DB index is out of range", "DATABASE"),
    ("ERR SELECT is not allowed in cluster mode", "DATABASE"),
    (f"ERR unknown command 'AUTH', with args beginning with: 'u' '{QUOTED}'", "UNKNOWN"),
    ("ERR invalid password", "WRONGPASS"),
    ("ERR The user executing the script can't run this command or subcommand", "NOPERM"),
    ("ERR ACL failure in script: User x has no permissions to run the 'get' command", "NOPERM"),
    ("ACL failure in script: User x has no permissions to access the 'k' key", "NOPERM"),
    (
        "MISCONF Errors writing to the AOF file: No space script: 0f, on @user_script:1",
        "MISCONF",
    ),
    ("ERR Error running script: @user_script: 1: -READONLY You can't write", "READONLY"),
    ("ERR Error running script: OOM command not allowed when used memory > 'maxmemory'.", "OOM"),
    ("ERR Script attempted to access a non local key in a cluster node", "CLUSTER"),
    ("ERR Script attempted to access keys that do not hash to the same slot", "CROSSSLOT"),
    ("ERR This instance has cluster support disabled", "NOCLUSTER"),
    ("ERR unknown command 'SENTINEL', with args beginning with: 'masters'", "NOSENTINEL"),
    ("ERR can't write against a read only slave", "READONLY"),
    # As proxies and providers say it.
    ("ERR command is not allowed", "UNKNOWN"),
    ("ERR Command 'info' is not supported", "UNKNOWN"),
    ("ERR unauthorized", "NOAUTH"),
    ("ERR client ip is not in whitelist", "DENIED"),
    ("ERR illegal address", "DENIED"),
    ("ERR max daily request limit exceeded. Limit: 10000, Usage: 10000", "LIMIT"),
    ("ERR max concurrent connections exceeded", "MAXCLIENTS"),
    ("ERR DB capacity quota exceeded", "LIMIT"),
    ("THROTTLED too many requests", "LIMIT"),
    ("ERR database memory limit exceeded", "OOM"),
    ("no upstream host", "UNREACHABLE"),
    ("upstream failure", "UNREACHABLE"),
    ("ERR Connection timed out", "UNREACHABLE"),
    ("ERR server closed the connection", "UNREACHABLE"),
    ("ERR Server is shutting down", "UNREACHABLE"),
    ("ERR Failover in progress", "UNREACHABLE"),
    ("MOVED 1 127.0.0.1:7000", "MOVED"),
    ("ASK 1 127.0.0.1:7000", "ASK"),
]
ERRORS = [
    (RedisConnectionError("Connection refused"), "UNREACHABLE"),
    (OSError(111, "Connection refused"), "UNREACHABLE"),
    (TimeoutError(), "TIMEOUT"),
    (InvalidResponse("Protocol error"), "PROTOCOL"),
    (RedisClusterException("no node"), "CLUSTER"),
    (RedisClusterException("none: Cluster mode is not enabled on this node"), "NOCLUSTER"),
    (RedisClusterException("none: Error 111. Connect call failed ('h', 1)"), "UNREACHABLE"),
    (ssl.SSLCertVerificationError(1, "certificate verify failed"), "TLS"),
    (ssl.SSLError(1, "tlsv13 alert certificate required"), "TLS"),
    (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), "UNREACHABLE"),
    (ValueError("no such thing"), "CALL"),
]


# redis-py gives it no types.
PARSER: Any = BaseParser


@pytest.mark.parametrize(("word", "verdict"), WORDS)
def test_word_of_a_server_has_its_verdict(word: str, verdict: Verdict) -> None:
    """As a server says it, and as redis-py makes an exception of it."""
    answer = answer_of(PARSER.parse_error(f"{word} as a server says it"))
    assert (answer.code, answer.verdict) == (word, verdict)
    assert answer.hint or word == "ERR"
    assert word in answer.told


@pytest.mark.parametrize(("text", "code"), SAID)
def test_text_without_a_word_of_its_own_has_a_code(text: str, code: str) -> None:
    """Where the server says what is wrong in a sentence alone, or inside of one."""
    answer = answer_of(PARSER.parse_error(text))
    assert answer.code == code
    assert QUOTED not in answer.told


@pytest.mark.parametrize(("error", "code"), ERRORS)
def test_way_of_getting_no_answer_has_a_code(error: Exception, code: str) -> None:
    """Alone, and where redis-py hides it behind a connection that could not be made."""
    assert answer_of(error).code == code


@pytest.mark.parametrize(
    ("hidden", "code"),
    [
        (AuthenticationError("invalid username-password pair"), "WRONGPASS"),
        (AuthenticationError("Authentication required."), "NOAUTH"),
        (BusyLoadingError("the dataset"), "LOADING"),
        (ResponseError("NOPROTO unsupported"), "NOPROTO"),
        (InvalidResponse("got H"), "PROTOCOL"),
        (ssl.SSLCertVerificationError(1, "certificate verify failed"), "TLS"),
    ],
)
def test_refusal_behind_a_failed_connection_is_found(hidden: Exception, code: str) -> None:
    """redis-py says that it could not connect, and why only in its cause."""
    error = RedisConnectionError("could not connect")
    error.__cause__ = hidden
    assert answer_of(error).code == code


@pytest.mark.parametrize(
    "text",
    [
        f"Command # 1 (SET key {QUOTED}) of pipeline caused error: ('MISCONF no space',)",
        f"Command # 1 (SET key {QUOTED}\n) of pipeline caused error: MISCONF no space",
    ],
)
def test_error_of_a_pipeline_tells_no_argument(text: str) -> None:
    """redis-py quotes the whole command; ours, its cause and what led to it do not."""
    made = typed(ResponseError(text), ServerUrl.parse("redis://h"), 1.0)
    assert made.code == "MISCONF"
    found: BaseException | None = made
    while found is not None:
        assert QUOTED not in f"{found} {found!r} {found.args}"
        found = found.__cause__ or found.__context__
    assert QUOTED not in str(without_arguments(ResponseError(text)))
