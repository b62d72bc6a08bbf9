"""Server URLs: which ones there are, and how they may be shown."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit, urlunsplit

from tokenbus.producer.errors import UrlInvalid

_SCHEMES = (
    "redis://, rediss://, unix:///socket, redis+cluster://node, redis+sentinel://sentinels/master,"
    " embedded:///path or embedded://"
)
SENTINEL_PORT = 26379


class ServerKind(StrEnum):
    """How a server comes to be there."""

    REMOTE = "remote"
    CLUSTER = "cluster"
    SENTINEL = "sentinel"
    SHARED = "shared"
    PRIVATE = "private"


@dataclass(frozen=True, slots=True)
class ServerUrl:
    """A checked URL; `path` is the data folder of a shared embedded server."""

    text: str
    kind: ServerKind
    path: Path | None = None

    @classmethod
    def parse(cls, text: str) -> ServerUrl:
        """Check a URL. Raises: UrlInvalid with a sentence that says what is possible."""
        try:
            parts = urlsplit(text)
            if parts.scheme in ("redis+sentinel", "rediss+sentinel"):
                SentinelUrl.parse(text)
                return cls(text, ServerKind.SENTINEL)
            port = parts.port
        except ValueError as error:
            raise UrlInvalid(f"server URL {hide_password(text)!r}: {error}") from None
        if parts.scheme in ("redis+cluster", "rediss+cluster"):
            if not parts.hostname or port == 0:
                raise UrlInvalid(f"server URL {hide_password(text)!r} names no node")
            return cls(text, ServerKind.CLUSTER)
        if parts.scheme in ("redis", "rediss"):
            if not parts.hostname or port == 0:
                raise UrlInvalid(f"server URL {hide_password(text)!r} names no host")
            return cls(text, ServerKind.REMOTE)
        if parts.scheme == "unix":
            if not parts.path.startswith("/"):
                raise UrlInvalid(f"server URL {hide_password(text)!r} needs an absolute path")
            return cls(text, ServerKind.REMOTE)
        if parts.scheme == "embedded":
            return cls._parse_embedded(text, parts.netloc, parts.path)
        raise UrlInvalid(f"server URL {hide_password(text)!r} is none of {_SCHEMES}")

    @classmethod
    def _parse_embedded(cls, text: str, netloc: str, path: str) -> ServerUrl:
        """Tell the private server from the shared one."""
        if netloc:
            raise UrlInvalid(f"server URL {text!r}: write embedded:///{netloc}{path}")
        if not path.strip("/"):
            return cls(text, ServerKind.PRIVATE)
        return cls(text, ServerKind.SHARED, Path(unquote(path)))

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


@dataclass(frozen=True, slots=True)
class SentinelUrl:
    """`redis+sentinel://[user:password@]host[:port],host[:port]…/master[/db]`, taken apart.

    User and password are those of the master; the sentinels' own go into the query as
    `sentinel_username` and `sentinel_password`.
    """

    sentinels: tuple[tuple[str, int], ...]
    master: str
    db: int
    is_tls: bool
    username: str | None
    password: str | None
    sentinel_username: str | None
    sentinel_password: str | None

    @classmethod
    def parse(cls, text: str) -> SentinelUrl:
        """Take a URL apart. Raises: ValueError with what is wrong."""
        parts = urlsplit(text)
        credentials, _, hosts = parts.netloc.rpartition("@")
        username, _, password = (unquote(part) for part in credentials.partition(":"))
        master, _, db = parts.path.strip("/").partition("/")
        query = dict(parse_qsl(parts.query))
        if not master:
            raise ValueError("it names no master: redis+sentinel://host:26379/mymaster")
        if not hosts:
            raise ValueError("it names no sentinel")
        return cls(
            tuple(_address(host) for host in hosts.split(",")),
            master,
            int(db or 0),
            parts.scheme == "rediss+sentinel",
            username or None,
            password or None,
            query.get("sentinel_username"),
            query.get("sentinel_password"),
        )


def _address(text: str) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname:
        raise ValueError(f"{text!r} is no address of a sentinel")
    return parts.hostname, parts.port or SENTINEL_PORT


def hide_password(text: str) -> str:
    """Replace the password in a URL, also in its query, by stars."""
    try:
        parts = urlsplit(text)
        secret = parts.password
    except ValueError:
        return text.rsplit("@", maxsplit=1)[-1]
    netloc, query = parts.netloc, parts.query
    if secret is None and "password=" not in query:
        return text
    if secret is not None:
        user, _, host = netloc.rpartition("@")
        netloc = f"{user.split(':', 1)[0]}:***@{host}"
    if "password=" in query:
        pairs = [
            pair.split("=", 1)[0] + "=***" if "password=" in pair else pair
            for pair in query.split("&")
        ]
        query = "&".join(pairs)
    return urlunsplit(parts._replace(netloc=netloc, query=query))
