"""Server URLs: which ones there are, what they say, and how they may be shown."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.producer.errors import UrlInvalid
from tokenbus.producer.server.credentials import PasswordFile
from tokenbus.producer.server.shown_url import hide_password
from tokenbus.producer.server.url_options import OPTIONS, decoded, of_redis_py, read_options
from tokenbus.producer.server.url_place import read_address, read_database, read_path, read_socket

if TYPE_CHECKING:
    from pathlib import Path

_SCHEMES = (
    "redis://, rediss://, unix:///socket, redis+cluster://node, redis+sentinel://sentinels/master,"
    " embedded:///path or embedded://"
)
_ENCODE = (
    "its user name or password holds '/', '?' or '#', or its path or options an '@';"
    " write them percent-encoded: / as %2F, ? as %3F, # as %23, @ as %40"
)
_FILES = {"password_file", "sentinel_password_file"}
PORT = 6379
SENTINEL_PORT = 26379


class ServerKind(StrEnum):
    """How a server comes to be there."""

    REMOTE = "remote"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"
    SHARED = "shared"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class _Parts:
    """A URL in its parts, decoded but for `hosts` and `path`; never shown."""

    scheme: str
    username: str | None = field(repr=False)
    password: str | None = field(repr=False)
    hosts: str
    path: str
    options: dict[str, Any] = field(repr=False)

    @classmethod
    def of(cls, text: str) -> _Parts:
        """Take a URL apart. Raises: ValueError that quotes nothing of it but option names.

        What stands before the last @ are the credentials, but in a path of unix and embedded.
        """
        scheme, mark, rest = text.partition("://")
        # Valkey's clients write their own name where Redis' write theirs.
        scheme = re.sub(r"^valkey(?=s?\b)", "redis", scheme.lower())
        if not mark or scheme not in OPTIONS:
            raise ValueError(f"it is none of {_SCHEMES}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise ValueError("it is no UTF-8")
        credentials = ""
        if not (scheme in ("unix", "embedded") and rest.startswith("/")):
            credentials, _, rest = rest.rpartition("@")
            if any(character in credentials for character in "/?#"):
                raise ValueError(_ENCODE)
        if "#" in rest:
            raise ValueError("it holds '#', which is written %23")
        if any(character <= " " or character == "\x7f" for character in rest):
            raise ValueError("it holds blanks or control characters; a blank is written %20")
        rest, _, query = rest.partition("?")
        if any(f"&{name}=" in rest for name in OPTIONS[scheme]):
            raise ValueError("its first option follows a ?, not an &")
        hosts, slash, path = rest.partition("/")
        username, _, password = credentials.partition(":")
        options = read_options(scheme, query)
        _refuse_two_credentials(username, password, options)
        return cls(
            scheme,
            decoded("its user name", username) or None,
            decoded("its password", password) or None,
            hosts,
            slash + path,
            options,
        )

    @property
    def is_tls(self) -> bool:
        """Tell whether connections are encrypted."""
        return self.scheme.startswith("rediss")

    def credentials(self) -> dict[str, Any]:
        """Return user and password, or what reads the password, as arguments of redis-py."""
        return _credentials(
            self.options.get("username", self.username),
            self.options.get("password", self.password),
            self.options.get("password_file"),
        )

    def sentinel_credentials(self) -> dict[str, Any]:
        """Return the same for sentinels, which have credentials of their own."""
        names = ("sentinel_username", "sentinel_password", "sentinel_password_file")
        return _credentials(*(self.options.get(name) for name in names))


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A checked URL; `path` is the data folder of a shared embedded server.

    `text` is the URL with its password, for a client of the same server; everything that prints the
    object prints `str` of it, without.
    """

    text: str
    kind: ServerKind
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ServerUrl:
        """Check a URL. Raises: UrlInvalid with a sentence that says what is possible.

        Neither the error nor its causes hold a password.
        """
        problem = ""
        text = text.strip()
        try:
            return cls._of(text, _Parts.of(text))
        except ValueError as error:
            problem = str(error)
        raise UrlInvalid(f"server URL {hide_password(text)!r}: {problem}")

    @classmethod
    def _of(cls, text: str, parts: _Parts) -> ServerUrl:
        if parts.scheme.endswith("+sentinel"):
            SentinelUrl.of(parts)
            return cls(text, ServerKind.SENTINEL)
        if parts.scheme == "embedded":
            if parts.hosts or parts.username or parts.password:
                raise ValueError("the folder begins with a third slash: embedded:///path")
            if not parts.path.strip("/"):
                return cls(text, ServerKind.PRIVATE)
            return cls(text, ServerKind.SHARED, read_path(parts.path))
        _place(parts)
        is_cluster = parts.scheme.endswith("+cluster")
        return cls(text, ServerKind.CLUSTER if is_cluster else ServerKind.REMOTE)

    def client_arguments(self) -> tuple[str, dict[str, Any]]:
        """Return a bare URL and the arguments for redis-py's `from_url`, which reads it no further.

        Raises: UrlInvalid for an embedded server, which has another URL once it runs, and for one
        behind sentinels.
        """
        if self.kind not in (ServerKind.REMOTE, ServerKind.CLUSTER):
            raise UrlInvalid(f"server URL {str(self)!r} is not that of a running server")
        parts = _Parts.of(self.text)
        options = of_redis_py(parts.options, is_tls=parts.is_tls)
        for name in ("username", "password"):
            options.pop(name, None)
        bare = f"{parts.scheme.removesuffix('+cluster')}://"
        return bare, options | parts.credentials() | _place(parts)

    @property
    def rereads_password(self) -> bool:
        """Tell whether the next connection may have another password than the last."""
        return not _FILES.isdisjoint(_Parts.of(self.text).options)

    @property
    def tls_options(self) -> dict[str, Any]:
        """Return what the URL says of TLS, as arguments of redis-py."""
        options = _Parts.of(self.text).options
        return {name: value for name, value in options.items() if name.startswith("ssl_")}

    @property
    def is_tls(self) -> bool:
        """Tell whether connections are encrypted."""
        return _Parts.of(self.text).is_tls

    @property
    def allows_eviction(self) -> bool:
        """Tell whether a server will do that may evict jobs."""
        return bool(_Parts.of(self.text).options.get("allow_eviction", False))

    def refuse_private(self, command: str) -> None:
        """Refuse the one-process server for a command that other processes have to reach.

        Raises: UrlInvalid with the hint.
        """
        if self.kind is ServerKind.PRIVATE:
            raise UrlInvalid(
                f"{command} cannot use embedded://, which no other process can reach;"
                " use embedded:///path/to/folder, shared by all processes that name it"
            )

    def __str__(self) -> str:
        """Return the URL without its password."""
        return hide_password(self.text)

    def __repr__(self) -> str:
        """Return the URL without its password."""
        return f"ServerUrl({str(self)!r})"


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://[user:password@]host[:port],host[:port]…/master[/db]`, taken apart.

    User and password are those of the master; the sentinels' own go into the query as
    `sentinel_username` and `sentinel_password` or `sentinel_password_file`.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    db: int
    is_tls: bool
    username: str | None
    password: str | None = field(repr=False)
    credentials: dict[str, Any] = field(repr=False)
    sentinel_credentials: dict[str, Any] = field(repr=False)
    tls: dict[str, Any]

    @classmethod
    def parse(cls, text: str) -> SentinelUrl:
        """Take a URL apart. Raises: ValueError with what is wrong."""
        return cls.of(_Parts.of(text))

    @classmethod
    def of(cls, parts: _Parts) -> SentinelUrl:
        """Read the parts of a URL. Raises: ValueError with what is wrong."""
        master, _, db = parts.path.strip("/").partition("/")
        if not master:
            raise ValueError("it names no master: redis+sentinel://host:26379/mymaster")
        if not parts.hosts:
            raise ValueError("it names no sentinel")
        return cls(
            tuple(read_address(host, SENTINEL_PORT) for host in parts.hosts.split(",")),
            decoded("the name of its master", master),
            read_database(db),
            parts.is_tls,
            parts.username,
            parts.password,
            parts.credentials(),
            parts.sentinel_credentials(),
            {
                name: value
                for name, value in of_redis_py(parts.options, is_tls=parts.is_tls).items()
                if name.startswith("ssl_")
            },
        )


def _refuse_two_credentials(username: str, password: str, options: dict[str, Any]) -> None:
    """Refuse a URL of which nobody can tell which user or password is meant. Raises: ValueError."""
    for name, given in (("username", username), ("password", password)):
        if given and name in options:
            raise ValueError(f"it gives a {name} before its host and another as an option")
    if "password_file" in options and (password or "password" in options):
        raise ValueError("it gives both a password and a password_file")
    if "sentinel_password_file" in options and "sentinel_password" in options:
        raise ValueError("it gives both a sentinel_password and a sentinel_password_file")


def _credentials(
    username: str | None, password: str | None, password_file: str | None
) -> dict[str, Any]:
    if password_file is not None:
        return {"credential_provider": PasswordFile(username, password_file)}
    named = (("username", username), ("password", password))
    return {name: value for name, value in named if value is not None}


def _place(parts: _Parts) -> dict[str, Any]:
    """Return where a client connects, as arguments of redis-py. Raises: ValueError."""
    if parts.scheme == "unix":
        if parts.hosts or not parts.path:
            raise ValueError("it needs an absolute path: unix:///socket")
        return {"path": str(read_socket(parts.path))}
    host, port = read_address(parts.hosts, PORT)
    db = read_database(parts.path.strip("/"))
    if db and parts.options.get("db", db) != db:
        raise ValueError("it gives one database in its path and another as its option db")
    if parts.scheme.endswith("+cluster"):
        if db:
            raise ValueError("a cluster has no database but 0")
        return {"host": host, "port": port}
    return {"host": host, "port": port, "db": parts.options.get("db", db)}
