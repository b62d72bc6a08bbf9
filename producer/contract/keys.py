"""Keys and channels of a pool: name, type and lifetime of each.

The state of a pool lives in one hash slot (tag `{tb:<pool>}`), token logs in one slot per shard
(tag `{tb:<pool>:<shard>}`), so that every script stays inside one slot on Redis Cluster. The Lua
scripts name keys only as `K.<name>` and `L.<name>`; the names are filled in from `POOL_KEYS` and
`LOG_KEYS` when they load. Where a key, a channel or a member names a job, it carries the job's
address (`contract/address.py`): its id, followed by `@<tenant>` for any tenant but `default`.

Channels know no database: what is published in one is heard in all of a server. So those of a
database n other than 0 have `:db<n>` behind their tag, `{tb:shop:0}:db3:tok:<job>`.

What tells a worker of jobs to take, to reap or to end has names of its own since wire version 2:
workers of version 1 look at the names in the last table only, so they never meet a job that they
cannot read. A worker of version 2 takes over what lies there (docs/protocol.md, Versions).

| name     | type   | lives                                                                     |
|----------|--------|---------------------------------------------------------------------------|
| inbox    | stream | public entrance; an entry goes when its job is accepted or refused        |
| inbox2   | stream | the same, not seen by workers of version 1                                |
| intake   | string | the worker that drains the inbox now, TTL of seconds                      |
| replies  | list   | `reply:<secret>`, the answer to a raw entry or a question; TTL            |
| questions | list  | what doors ask the tokenizer of any worker; TTL of seconds                |
| lane     | stream | `lane2:<priority>:<tenant>`, waiting jobs only; deleted when empty        |
| front    | stream | `front2:<priority>`, jobs handed back or reaped; deleted when empty       |
| suspects | stream | jobs handed back or reaped that ride with few others; deleted when empty  |
| job      | hash   | the job record; TTL from the end of completion on                         |
| idem     | string | idempotency key -> job id; no TTL while the job lives                     |
| held     | hash   | `held:<worker>`, job -> epoch; gone when empty                            |
| flags    | hash   | `flags:<worker>`, held job -> cancel or expire                            |
| alive    | string | `alive:<worker>`, tokens that fit the worker's pages, TTL = lease         |
| worker   | hash   | `worker:<worker>`, serial of its last reconcile, whether it has room or   |
|          |        | leaves or was drained, the suspect it claims or holds; goes with `workers`|
| status   | string | `status:<worker>`, JSON gauges for people and metrics, TTL = lease         |
| workers  | set    | `workers2`, every worker that may hold jobs                               |
| starting | set    | workers that load their model, each with a status; TTL of minutes         |
| watcher  | string | the control process that exports the pool's figures; TTL of seconds       |
| backlog  | zset   | `backlog2:<priority>`, tenant -> virtual time, tenants with waiting jobs  |
| running  | zset   | `running:<priority>`, tenant -> virtual time, tenants with held jobs      |
| resting  | zset   | `resting:<priority>`, tenants ahead of the floor with neither             |
| holding  | hash   | `holding:<priority>`, tenant -> number of held jobs                       |
| floor    | hash   | priority -> smallest virtual time a returning tenant gets; bounded        |
| load     | hash   | waiting tokens and jobs: of the pool, per priority, per tenant            |
| later    | hash   | tokens and number of delayed jobs by the minute since 1970 in which they  |
|          |        | are due; TTL of a day from the last of them on                            |
| line     | hash   | when the next refused submit may come back, per pool and tenant           |
| drain    | hash   | measured drain rate of the backlog, last start, model of workers; bounded |
| due      | zset   | `due2`, deadlines and delays by server time                               |
| ending   | zset   | `ending2`, jobs that end without an owner, or are not quite complete      |
| dead     | stream | dead letters, bounded in number and bytes                                 |
| letters  | hash   | number and bytes of the dead letters, and how many bytes they may have    |
| paused   | string | since when pulls take nothing, by server time in ms; there while they do  |
| bell     | list   | `bell2`, at most one token: work became pullable                          |
| wake     | list   | `wake:<worker>`, the same for one worker: a job of its prefix; TTL        |
| home     | string | `home:<prefix>`, the worker whose cache holds the prefix; TTL             |
| ctl      | channel| `ctl:<worker>`, cancel and expiry notices to the owner                    |
| ended    | channel| jobs whose record became `done`; the result can be read by then           |
| lost     | zset   | workers that vanished -> since when it is known; an hour                  |
| recent   | list   | jobs that ended last, newest last, with their timelines; bounded, TTL of  |
|          |        | a week                                                                    |
| kept     | hash   | bytes of finished jobs, `of:<tenant>` those of a tenant, and their bounds;  |
|          |        | TTL, as the next three, of a record                                       |
| kept_of  | list   | `kept:<tenant>`, a tenant's finished jobs, oldest first, with their bytes |
| kept_first | zset | tenant -> when the first job of its list ended                            |
| said     | zset   | `said:<digest of a cache scope>`, jobs whose answers drafts may come from |
|          |        | -> when they ended; bounded, TTL of a result                              |
| dropped  | list   | jobs whose results were dropped for room, oldest first                    |
| hooks    | zset   | `hooks2`, jobs whose webhook is due, by the time of the next try          |
| hook     | hash   | a job's webhook and its tries; a belt TTL of a week, less once settled    |
| usage    | hash   | `usage:<hour since 1970>`, tokens per tenant; TTL of eight days           |
| ticks    | hash   | cron -> its last tick in ms; bounded by the number of crons               |
| digest   | hash   | how far the dead letters were digested, and the last digest               |
| pressure | string | JSON for autoscalers: what waits, drain rate, seconds; TTL of a minute    |

Per shard of token logs, each followed by the job's address:

| log      | stream | ids `<epoch>-<index>`; a belt TTL of a week from the marker on, renewed by |
|          |        | later writes; completion deletes it or sets a short one                   |
| result   | string | written with the terminal entry, the same belt; then a TTL of its own;    |
|          |        | may be dropped for room before                                            |
| tok      | channel| the job's events, public                                                  |

And followed by the secret of a client:

| cli      | channel| `cli:<secret>`, the events of all jobs that one client has submitted      |

Of version 1, with the same types; this release adds nothing to them:

| lane1    | stream | `lane:<priority>:<tenant>`                                                |
| front1   | stream | `front:<priority>`                                                        |
| backlog1 | zset   | `backlog:<priority>`                                                      |
| workers1 | set    | `workers`                                                                 |
| due1     | zset   | `due`                                                                     |
| ending1  | zset   | `ending`                                                                  |
| bell1    | list   | `bell`                                                                    |
| hooks1   | zset   | `hooks`                                                                   |
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenbus.producer.contract.address import JobAddress
from tokenbus.producer.errors import RequestInvalid

# Of requests, events and results. A job keeps the version that it was accepted under; a version
# that is not among the known ones is refused by readers.
WIRE_VERSION = 2
KNOWN_VERSIONS = (1, 2)
# What a stored request says where it holds fields that the first readers of version 2 refuse, each
# by its name: so they refuse it by its version. The job and all else of it is of version 2.
EXTENDED_REQUEST = 3

POOL_KEYS = {
    "inbox": ":inbox",
    "inbox2": ":inbox2",
    "intake": ":intake",
    "replies": ":reply:",
    "questions": ":questions",
    "lane": ":lane2:",
    "front": ":front2:",
    "suspects": ":suspects",
    "job": ":job:",
    "idem": ":idem:",
    "held": ":held:",
    "flags": ":flags:",
    "alive": ":alive:",
    "worker": ":worker:",
    "status": ":status:",
    "workers": ":workers2",
    "starting": ":starting",
    "watcher": ":watcher",
    "backlog": ":backlog2:",
    "running": ":running:",
    "resting": ":resting:",
    "holding": ":holding:",
    "floor": ":floor",
    "load": ":load",
    "later": ":later",
    "line": ":line",
    "drain": ":drain",
    "due": ":due2",
    "ending": ":ending2",
    "dead": ":dead",
    "letters": ":letters",
    "paused": ":paused",
    "bell": ":bell2",
    "wake": ":wake:",
    "home": ":home:",
    "ctl": ":ctl:",
    "ended": ":ended",
    "recent": ":recent",
    "lost": ":lost",
    "kept": ":kept",
    "kept_of": ":kept:",
    "kept_first": ":kept_first",
    "said": ":said:",
    "dropped": ":dropped",
    "hooks": ":hooks2",
    "hook": ":hook:",
    "usage": ":usage:",
    "ticks": ":ticks",
    "digest": ":digest",
    "pressure": ":pressure",
    "lane1": ":lane:",
    "front1": ":front:",
    "backlog1": ":backlog:",
    "workers1": ":workers",
    "due1": ":due",
    "ending1": ":ending",
    "bell1": ":bell",
    "hooks1": ":hooks",
}

LOG_KEYS = {"log": ":log:", "result": ":result:", "tok": ":tok:", "cli": ":cli:"}

# Names in the two tables that are published to, and not stored.
CHANNELS = ("ctl", "ended", "tok", "cli")

NUM_PRIORITIES = 3
# To be used with `fullmatch`: before the dollar of Python a line break may stand.
NAME_PATTERN = r"^[A-Za-z0-9_.:@/-]{1,64}$"
JOB_ID_PATTERN = r"^[A-Za-z0-9_.:-]{1,96}$"
REPLY_PATTERN = r"[A-Za-z0-9_-]{16,128}"
# Bytes of randomness in the secret of a client, 22 characters as text.
LISTEN_BYTES = 16
POOL_PATTERN = r"^[A-Za-z0-9_.-]{1,64}$"
_POOL = re.compile(POOL_PATTERN)
_SHARD = re.compile(r"^s(\d{1,3})-")


def check_pool(name: str) -> str:
    """Return the name of a pool. Raises: ValueError for one that would leave its hash slot."""
    if not isinstance(name, str) or _POOL.fullmatch(name) is None:
        # What looks like a URL may hold a password.
        is_shown = isinstance(name, str) and not set(":/@") & set(name)
        shown = f"{name!a}" if is_shown else "what was given"
        raise ValueError(f"{shown} is not 1 to 64 of A-Z a-z 0-9 _ . -")
    return name


def versions_text(version: object) -> str:
    """Say which wire version was met, and which ones this release reads."""
    known = " and ".join(str(each) for each in KNOWN_VERSIONS)
    return f"speaks wire version {version}; this release speaks {known}"


def database_mark(database: int) -> str:
    """Return what stands behind the tag in the channels of a logical database; nothing for 0."""
    return f":db{database}" if database else ""


def address_of(channel: bytes) -> JobAddress:
    """Return the address of the job that a channel belongs to, in any database."""
    untagged = channel.decode().partition("}")[2]
    return JobAddress.parse(untagged.partition(LOG_KEYS["tok"])[2])


def shard_of(job_id: str) -> int:
    """Return the shard that a job's id or address carries (`s<shard>-…`), 0 without one."""
    if job_id.startswith("s0-"):
        # Nearly all of them: only a cluster has more than one.
        return 0
    match = _SHARD.match(job_id)
    return int(match.group(1)) if match else 0


@dataclass(frozen=True, slots=True)
class Keys:
    """Names of one pool in one logical database; `job_id` of a method is a job's address as text.

    Keys lie in their database, so their names are the same in each; those of channels tell it.
    """

    pool: str
    database: int = 0

    def __post_init__(self) -> None:
        """Refuse a pool name that would leave its hash slot."""
        try:
            check_pool(self.pool)
        except ValueError as error:
            raise RequestInvalid("pool", str(error)) from None

    @property
    def prefix(self) -> str:
        """Return the tag that every key of the pool's slot begins with."""
        return f"{{tb:{self.pool}}}"

    def of(self, name: str, member: str = "") -> str:
        """Return the pool key or channel `name`, with its member where the name ends in a colon."""
        return f"{self.prefix}{self._mark(name)}{POOL_KEYS[name]}{member}"

    def lane(self, priority: int, tenant: str) -> str:
        """Return the stream of waiting jobs of one priority and tenant."""
        return self.of("lane", f"{priority}:{tenant}")

    def log_prefix(self, shard: int) -> str:
        """Return the tag of a shard of token logs."""
        return f"{{tb:{self.pool}:{shard}}}"

    def log(self, job_id: str) -> str:
        """Return the token log: stream, ids `<epoch>-<index>`, TTL renewed by every write."""
        return self._of_shard("log", job_id)

    def result(self, job_id: str) -> str:
        """Return the result value: JSON string written with the terminal entry."""
        return self._of_shard("result", job_id)

    def channel(self, job_id: str) -> str:
        """Return the public channel on which the job's events are published."""
        return self._of_shard("tok", job_id)

    def client_channel(self, shard: int, listen: str) -> str:
        """Return the channel of a client on which a shard's events of its jobs are published."""
        return f"{self.log_prefix(shard)}{self._mark('cli')}{LOG_KEYS['cli']}{listen}"

    def _of_shard(self, name: str, job_id: str) -> str:
        tag = self.log_prefix(shard_of(job_id))
        return f"{tag}{self._mark(name)}{LOG_KEYS[name]}{job_id}"

    def _mark(self, name: str) -> str:
        return database_mark(self.database) if name in CHANNELS else ""
