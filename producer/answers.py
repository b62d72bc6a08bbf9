"""Answers of a server that are errors: one table of what each means and what to do about it.

Every answer of Redis and Valkey, and every way of getting none, has a code here: the server's own
word, or our own where the server has none. Workers, clients, readers and the control service
ask this table and nothing else:

    wait      the server will take the call later: ask again, as long as the caller has patience
    refuse    somebody has to change something, which the hint names: a client raises, a worker or
              service says so and asks again
    fail      the call itself is wrong, or what lies in the pool's keys

It is one file because it is one table.
Sources: error replies of Redis 6.2 to 8 and Valkey 7.2 to 9 (`server.c`, `acl.c`, `sentinel.c`,
`cluster.c` and their documentation), each provoked in `tests/integration/test_answers.py`.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from enum import StrEnum

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthenticationWrongNumberOfArgsError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    ClusterError,
    ExecAbortError,
    InvalidResponse,
    MasterDownError,
    MovedError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

# All that a call on the server may raise for the server's sake or the network's.
SERVER_ERRORS = (RedisError, RedisClusterException, OSError)


class Verdict(StrEnum):
    """What to do about an answer."""

    WAIT = "wait"
    REFUSE = "refuse"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class ServerAnswer:
    """One answer: its `code`, what to do, a `hint` for a person, and its `text` without arguments.

    `text` holds neither credentials nor anything of a job.
    """

    code: str
    verdict: Verdict
    hint: str
    text: str = ""

    @property
    def told(self) -> str:
        """Return code, text and hint in one line."""
        said = self.text if self.text.startswith(self.code) else f"{self.code} {self.text}".strip()
        return f"{said.rstrip('. ')}; {self.hint}" if self.hint else said

    @property
    def waits(self) -> bool:
        """Tell whether asking again later is all there is to do."""
        return self.verdict is Verdict.WAIT

    @property
    def is_refusal(self) -> bool:
        """Tell whether somebody has to change something before the server takes calls."""
        return self.verdict is Verdict.REFUSE

    @property
    def is_of_call(self) -> bool:
        """Tell whether the call itself is wrong, so that others may well be answered."""
        return self.verdict is Verdict.FAIL

    @property
    def is_of_credentials(self) -> bool:
        """Tell whether the server does not accept user and password, as they are now."""
        return self.code in ("NOAUTH", "WRONGPASS")

    @property
    def says_nothing(self) -> bool:
        """Tell whether there was no answer at all, or none that can be read."""
        return self.code in ("UNREACHABLE", "TIMEOUT", "PROTOCOL")


_RIGHTS = "SECURITY.md has the ACL lines that suffice"
_CLUSTER = "where this is a cluster, write redis+cluster://host:port"

_TABLE: dict[Verdict, dict[str, str]] = {
    Verdict.WAIT: {
        # No answer.
        "UNREACHABLE": "",
        "TIMEOUT": "",
        "PROTOCOL": "what answers at this address does not speak the protocol of Redis",
        # The server, for a time.
        "LOADING": "the server is reading its data",
        "BUSY": "a script runs on the server for long; SCRIPT KILL ends one that wrote nothing",
        "UNKILLABLE": "a script that has written runs on the server; it has to end",
        "OOM": "the server's memory is full; raise maxmemory or let jobs end",
        "MISCONF": "the server cannot write its file; see its log, and the space on its disk",
        "IOERR": "the server cannot write its file; see its log, and the space on its disk",
        "MAXCLIENTS": "the server has no connection left; raise maxclients",
        "LIMIT": "the server's provider counts calls, connections or bytes, and a limit is reached",
        # Ours: `begin.lua` says it.
        "UNLEASED": "the worker renews its lease and begins anew",
        "NOSCRIPT": "the server forgot its scripts; they are sent again",
        "EXECABORT": "nothing of the transaction was carried out",
        # Another server rules, or will.
        "READONLY": "this server is a replica now; its master's address has to lead to the master",
        "UNBLOCKED": "this server was made a replica",
        "REDIRECT": "this server was made a replica",
        "MASTERDOWN": "this replica has lost its master",
        "NOMASTERLINK": "this replica has lost its master",
        "NOREPLICAS": "the master has fewer replicas than min-replicas-to-write",
        # A cluster that is moving slots, electing a master or not whole.
        "CLUSTERDOWN": "the cluster does not serve all slots",
        "CLUSTER": "the cluster does not serve all slots",
        "TRYAGAIN": "a slot of the cluster is on its way",
        "MOVED": f"a slot of the cluster has moved; {_CLUSTER}",
        "ASK": f"a slot of the cluster is on its way; {_CLUSTER}",
        # Sentinels.
        "IDONTKNOW": "the sentinels do not know yet",
        "INPROG": "the sentinels are about another master already",
        "NOGOODSLAVE": "the sentinels see no replica that could become the master",
        "NOQUORUM": "too few sentinels see each other",
    },
    Verdict.REFUSE: {
        "NOAUTH": (
            "give user and password, in TOKENBUS_REDIS_URL or by its option password_file;"
            " those of sentinels are sentinel_username and sentinel_password"
        ),
        "WRONGPASS": "it knows no such user and password, or they have changed",
        "NOPERM": _RIGHTS,
        "DENIED": (
            "the server does not let this address in: it has a list of those that it does, or is in"
            " protected mode and needs a password or an address to bind to"
        ),
        "NOPROTO": "the server does not speak version 2 of the protocol",
        "DATABASE": "the server has no database of this number",
        "UNKNOWN": "the server lacks this command, or its provider took it away",
        "NOCLUSTER": "what answers is no node of a cluster; write redis://host:port",
        "NOSENTINEL": "what answers is no sentinel; write redis://host:port for a server",
        "CROSSSLOT": _CLUSTER,
        "TLS": (
            "the certificate has to be signed by an authority that is trusted here (ssl_ca_certs)"
            " and has to name the host (ssl_check_hostname)"
        ),
    },
    Verdict.FAIL: {
        "WRONGTYPE": "a key of the pool is of another type: something else writes to its keys",
        "NOGROUP": "tokenbus has no consumer groups",
        "BUSYGROUP": "tokenbus has no consumer groups",
        "BUSYKEY": "somebody restores keys under the pool's names",
        "NOTBUSY": "no script runs that could be ended",
        "CALL": "redis-py cannot send this",
        "ERR": "",
    },
}
_VERDICTS = {code: verdict for verdict, rows in _TABLE.items() for code in rows}
_HINTS = {code: hint for rows in _TABLE.values() for code, hint in rows.items()}
_UNKNOWN = "this answer is not known here"

# redis-py keeps the text of these and drops the code. Subclasses before their bases.
_CODES: tuple[tuple[type[BaseException], str], ...] = (
    (AuthenticationWrongNumberOfArgsError, "WRONGPASS"),
    (NoPermissionError, "NOPERM"),
    (BusyLoadingError, "LOADING"),
    (ReadOnlyError, "READONLY"),
    (OutOfMemoryError, "OOM"),
    (NoScriptError, "NOSCRIPT"),
    (ExecAbortError, "EXECABORT"),
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (ClusterCrossSlotError, "CROSSSLOT"),
    (TryAgainError, "TRYAGAIN"),
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (ClusterError, "CLUSTER"),
    (RedisClusterException, "CLUSTER"),
    (InvalidResponse, "PROTOCOL"),
    (RedisTimeoutError, "TIMEOUT"),
    (TimeoutError, "TIMEOUT"),
)
# What redis-py hides behind "the connection could not be made".
_INSIDE = (ResponseError, InvalidResponse, BusyLoadingError)
# What the server says without a code of its own.
_TEXTS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern, re.IGNORECASE), code)
    for pattern, code in (
        (r"max(imum)? (number of |concurrent )?(clients|connections)", "MAXCLIENTS"),
        # To calls of more than ten words before a client has said who it is.
        (r"unauthenticated (multi)?bulk length", "NOAUTH"),
        (r"(acl failure in script|the user executing the script can't)", "NOPERM"),
        (r"operation not permitted", "NOPERM"),
        (r"has no permissions? to", "NOPERM"),
        (r"(invalid (username-)?password|without any password configured)", "WRONGPASS"),
        (r"client sent auth, but no password", "WRONGPASS"),
        (r"(authentication required|client already authenticated|unauthorized)", "NOAUTH"),
        (r"(db index is out of range|invalid db index|select is not allowed)", "DATABASE"),
        (r"unknown command '?sentinel", "NOSENTINEL"),
        (r"cluster mode is not enabled|cluster support disabled", "NOCLUSTER"),
        (r"connect call failed", "UNREACHABLE"),
        (r"(unknown (redis )?(sub)?command|unknown or disabled command)", "UNKNOWN"),
        (r"command( '\S+')? (is )?not (allowed|supported|permitted)(?! when used)", "UNKNOWN"),
        (r"protocol error", "PROTOCOL"),
        (r"(don't|do not) hash to the same slot|same hash slot", "CROSSSLOT"),
        (r"non local key in a cluster", "CLUSTER"),
        (r"against a read[- ]only (replica|slave)", "READONLY"),
        # Of proxies and providers.
        (r"memory limit|limit of memory|maxmemory", "OOM"),
        (r"(white|allow)list|illegal address", "DENIED"),
        (r"(limit|quota) (is |was )?(exceeded|reached)|too many requests", "LIMIT"),
        (r"upstream (host|failure|connect)|(is|server) shutting down", "UNREACHABLE"),
        (r"connection (was )?(refused|reset|closed|timed out)", "UNREACHABLE"),
        (r"closed the connection", "UNREACHABLE"),
        (r"(failover|handshake) in progress", "UNREACHABLE"),
    )
)
# What a server may say to a connection before its first call, in redis-py's words at times.
_BEFORE_CALLS = ("MAXCLIENTS", "NOAUTH", "WRONGPASS", "DENIED", "LIMIT")
# What redis-py says of a cluster that it cannot look at.
_OF_NO_CLUSTER = ("NOCLUSTER", "UNREACHABLE")
# A script that ran into an error of the server's names it in front or in the middle.
_CODE = re.compile(r"-?([A-Z][A-Z_]{2,})(?=[ :]|$)")
_IN_PIPELINE = re.compile(r"^Command # \d+ .*? of pipeline caused error: ", re.DOTALL)
# What follows may be an argument: a password of AUTH, a prompt.
_ARGUMENTS = re.compile(r"(, with args beginning with:|, args \[).*", re.DOTALL | re.IGNORECASE)
# What either side of a TLS connection will say again.
_TLS = re.compile(
    r"alert[ _].*(cert|unknown[ _]ca|handshake|access|protocol)|wrong[ _]version|unsupported",
    re.IGNORECASE,
)
_MAX_TEXT = 300


def answer_of(error: BaseException) -> ServerAnswer:
    """Look an error up that a call on the server raised."""
    inner = _innermost(error)
    text = plain_text(inner)
    code = _code(inner, text)
    verdict = _VERDICTS.get(code, Verdict.FAIL)
    return ServerAnswer(code, verdict, _HINTS.get(code, _UNKNOWN), text or type(inner).__name__)


def plain_text(error: BaseException) -> str:
    """Return what the server or redis-py says, without the arguments of any command."""
    text = " ".join(_ARGUMENTS.sub("", _IN_PIPELINE.sub("", str(error))).split())
    return text[:_MAX_TEXT].strip("('\",)") if "caused error" in str(error) else text[:_MAX_TEXT]


def without_arguments(error: BaseException) -> BaseException:
    """Return an error of the same kind that quotes no command, for the cause of a typed one."""
    inner = _innermost(error)
    if not isinstance(inner, SERVER_ERRORS):
        return inner
    try:
        bare = type(inner)(plain_text(inner))
    except (TypeError, ValueError, IndexError):
        # Kinds that read an address out of their text.
        bare = RedisError(plain_text(inner))
    return bare.with_traceback(error.__traceback__)


def _innermost(error: BaseException) -> BaseException:
    """Return the error that tells most: redis-py hides refusals and TLS errors in causes."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, AuthenticationError | ssl.SSLError):
            return found
        if isinstance(found, RedisConnectionError) and isinstance(found.__cause__, _INSIDE):
            return found.__cause__
        found = found.__cause__ or (None if found.__suppress_context__ else found.__context__)
    return error


def _code(error: BaseException, text: str) -> str:
    said = next((code for pattern, code in _TEXTS if pattern.search(text)), None)
    for kind, code in _CODES:
        if isinstance(error, kind):
            return said if code == "CLUSTER" and said in _OF_NO_CLUSTER else code
    if isinstance(error, ssl.SSLError):
        # Other errors of TLS are connections that broke.
        is_refusal = isinstance(error, ssl.SSLCertVerificationError) or _TLS.search(text)
        return "TLS" if is_refusal else "UNREACHABLE"
    if isinstance(error, AuthenticationError):
        return said or "WRONGPASS"
    if isinstance(error, RedisConnectionError | OSError):
        return said if said in _BEFORE_CALLS else "UNREACHABLE"
    if not isinstance(error, ResponseError):
        return "CALL"
    match = _CODE.match(text)
    named = None if match is None or match[1] == "ERR" else match[1]
    if named in _VERDICTS:
        return named
    inside = next((m[1] for m in _CODE.finditer(text) if m[1] in _VERDICTS and m[1] != "ERR"), None)
    return said or inside or named or "ERR"
