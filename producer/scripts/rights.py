"""Rights of a server's user: which a role needs, which it lacks, and the ACL line that gives them.

They follow from the scripts: what a role runs is read off the text of its scripts, so a script that
calls another command asks for it here by itself. `SECURITY.md` has the lines.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from tokenbus.producer.answers import answer_of
from tokenbus.producer.contract.deployment_keys import PREFIX
from tokenbus.producer.contract.fast_json import to_json
from tokenbus.producer.errors import ServerRefused
from tokenbus.producer.scripts.source import script_source

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from redis.asyncio import Redis

    from tokenbus.producer.contract.keys import Keys


class UserRole(StrEnum):
    """What a user of the server does for a pool."""

    READER = "reader"
    PRODUCER = "producer"
    WORKER = "worker"
    CONTROL = "control"
    GATEWAY = "gateway"


# To connect, as redis-py does, and to look whether the rights are there. Without INFO version and
# eviction policy are not checked.
_CONNECT = ("client|setname", "eval", "evalsha", "hello", "info", "ping", "select")
# What a client of a cluster asks for beside them.
CLUSTER_COMMANDS = ("asking", "cluster|shards", "cluster|slots", "command", "readonly")
# Without PUBSUB CHANNELS nobody is told the names of other pools.
_LISTEN = ("pubsub|channels", "subscribe", "unsubscribe")
_READS = (
    *("exists", "get", "hget", "hgetall", "hkeys", "hlen", "hmget", "llen", "pttl", "smembers"),
    *("time", "xrange", "xrevrange", "zrange"),
)
_ENDS = ("complete_many", "drop_many", "end", "expire_many", "raise_epoch", "retain_many")
# What arq calls for itself, on keys of its own.
_ARQ = (
    *("dbsize", "del", "exec", "exists", "expire", "get", "incrby", "mget", "multi", "pexpire"),
    *("psetex", "set", "unwatch", "watch", "zadd", "zcard", "zrangebyscore", "zrem", "zscore"),
    *("zmscore", "zrange", "incr"),
)
# What gateways and control services do with the keys of the deployment and with what is stored,
# which belong to no pool.
_DEPLOYED = (
    *("del", "exec", "exists", "expire", "get", "getbit", "hdel", "hexists", "hget", "hgetall"),
    *("hincrby", "hkeys", "hmget", "hset", "hsetnx", "hvals", "incrby", "lrange", "mget", "multi"),
    *("pexpire", "pexpireat", "rpush", "sadd", "set", "setbit", "smembers", "zadd", "zcard"),
    *("zcount", "zrange", "zrangebyscore", "zrank", "zrem", "zremrangebyscore", "zrevrange"),
    "zrevrank",
)
_OF_DEPLOYMENT = (UserRole.CONTROL, UserRole.GATEWAY)
_SCRIPTS: dict[UserRole, tuple[str, ...]] = {
    UserRole.READER: (),
    UserRole.PRODUCER: ("submit", "submit_many", "cancel", "pause", "drain", *_ENDS),
    UserRole.GATEWAY: ("submit", "submit_many", "cancel", "pause", "drain", *_ENDS),
    UserRole.WORKER: (
        *("append", "begin", "drain_inbox", "leave", "pull", "reject", "renew", "reply"),
        *("requeue", "scan"),
        *("submit", "cancel", "takeover", "tick", "unpull", *_ENDS),
    ),
    UserRole.CONTROL: (
        *("submit", "cancel", "tick", "scan", "requeue", "drop_letters", "cron_tick"),
        *("pause", "watch", "webhook_claim", "webhook_open", "webhook_try", *_ENDS),
    ),
}
# What a role calls without a script.
_PLAIN: dict[UserRole, tuple[str, ...]] = {
    UserRole.READER: (*_READS, *_LISTEN),
    UserRole.PRODUCER: (*_READS, *_LISTEN, "publish"),
    UserRole.WORKER: (*_READS, *_LISTEN, "blpop", "del", "hset", "pexpire", "publish", "set"),
    UserRole.CONTROL: (*_READS, *_LISTEN, *_ARQ, *_DEPLOYED, "hset", "publish", "scan", "time"),
    UserRole.GATEWAY: (*_READS, *_LISTEN, *_DEPLOYED, "lpop", "publish"),
}
_CALL = re.compile(r"\bp?call\(\s*'([A-Z]+)'")
_NO_KEY = {*_CONNECT, *CLUSTER_COMMANDS, "dbsize", "exec", "multi", "scan", "time", "unwatch"}
# All that follows their name is keys.
_MANY_KEYS = {"del", "exists", "mget", "sunion", "watch"}
_ON_CHANNELS = {"publish", "subscribe", "unsubscribe"}
# Answers with those of the calls that the script's user may not make; makes none of them.
_TRY = """#!lua flags=no-writes,allow-stale,allow-oom
local missing = {}
for number, call in ipairs(cjson.decode(ARGV[1])) do
  local ok, allowed = pcall(redis.acl_check_cmd, unpack(call))
  if ok and not allowed then missing[#missing + 1] = number end
end
return missing
"""


def commands_of(role: UserRole) -> list[str]:
    """Return the commands of a role, in lower case and order."""
    called = {
        name.lower() for script in _SCRIPTS[role] for name in _CALL.findall(script_source(script))
    }
    return sorted({*_CONNECT, *_PLAIN[role], *called})


def acl_line(role: UserRole, pool: str, *, user: str = "") -> str:
    """Return the command that makes a user who may do what a role does for a pool, and no more."""
    patterns = f"~{{tb:{pool}[:}}]* &{{tb:{pool}[:}}]*"
    if role in _OF_DEPLOYMENT:
        patterns += f" ~{PREFIX}*"
    if role is UserRole.CONTROL:
        patterns += " ~arq:*"
    allowed = " ".join(f"+{command}" for command in commands_of(role))
    return f"ACL SETUSER {user or role.value} reset on >PASSWORD {patterns} {allowed}"


async def check_rights(redis: Redis, keys: Keys, *roles: UserRole, shown_url: str) -> None:
    """Ask the server whether its user may do what one of the roles does; nothing is done.

    Raises: ServerRefused that names what the first of them lacks and the line that gives it; what
    the server answers otherwise.
    """
    lacks: list[list[str]] = []
    for role in roles:
        lacks.append(await missing_rights(redis, keys, role))
        if not lacks[-1]:
            return
    role, missing = roles[0], lacks[0]
    line = acl_line(role, keys.pool, user="USER")
    raise ServerRefused(
        f"the server at {shown_url} does not let this user act as {role.value} of pool"
        f" {keys.pool}: it may not {', '.join(missing[:6])}{' …' if len(missing) > 6 else ''};"
        f" this suffices: {line}",
        code="NOPERM",
        hint=line,
    )


async def missing_rights(redis: Redis, keys: Keys, role: UserRole) -> list[str]:
    """Return what the user may not do of what a role does. Raises: what the server answers."""
    calls = _calls(keys, role)
    try:
        numbers = await _refused(redis, keys, calls)
    except Exception as error:
        if answer_of(error).code != "NOPERM":
            raise
        return ["EVAL"]
    return [" ".join(part for part in calls[number - 1][:2] if part) for number in numbers]


async def may_hear(redis: Redis, keys: Keys, *channels: str) -> list[bool]:
    """Tell for each channel whether the user may subscribe to it. Raises: what the server answers.

    A refused subscription would end all others of its connection.
    """
    numbers = await _refused(redis, keys, [["SUBSCRIBE", channel] for channel in channels])
    return [number not in numbers for number in range(1, len(channels) + 1)]


async def _refused(redis: Redis, keys: Keys, calls: Sequence[Sequence[str]]) -> list[int]:
    """Return the numbers of the calls that the user may not make, from 1."""
    run: Callable[..., Awaitable[Any]] = redis.execute_command
    numbers = await run("EVAL", _TRY, 1, keys.of("job", "~"), to_json(calls))
    return [int(number) for number in numbers]


def _on_key(command: str, key: str) -> list[str]:
    """Return the call of a command on a key."""
    return [command.upper(), key] if command in _MANY_KEYS else [command.upper(), key, "0"]


def _calls(keys: Keys, role: UserRole) -> list[list[str]]:
    """List one call per command of a role, on the keys or channels that it uses."""
    key, channels = keys.of("job", "~"), [keys.channel("~")]
    if role is not UserRole.READER:
        # Who submits listens there, and who ends a job publishes there.
        channels.append(keys.client_channel(0, "~"))
    calls: list[list[str]] = []
    for command in commands_of(role):
        name, _, sub = command.partition("|")
        if command in ("client|setname", "hello", "info", "pubsub|channels", "select"):
            # Not needed everywhere; where it is, the connection has failed before.
            continue
        if command in ("eval", "evalsha"):
            calls.append([name.upper(), "return 1", "1", key])
        elif command in _ON_CHANNELS:
            num_parts = 3 if command == "publish" else 2
            calls += [[name.upper(), channel, "x"][:num_parts] for channel in channels]
        elif command in _NO_KEY:
            calls.append([name.upper(), sub.upper()] if sub else [name.upper()])
        else:
            calls.append(_on_key(name, key))
    log = keys.log("~")
    if role in _OF_DEPLOYMENT:
        calls += [_on_key(each, f"{PREFIX}~") for each in _DEPLOYED if each not in _NO_KEY]
    calls += [["XREVRANGE", log, "+", "-"], ["GET", keys.result("~")]]
    return calls
