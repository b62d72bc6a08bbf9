"""Names of keys that belong to no pool: what a deployment's doors share, in one hash slot.

All begin with `{tokenbus}:`, so that a script or a transaction may touch several of them on a
cluster too. They lie in the database of the server's URL.

| name      | type   | lives                                                                       |
|-----------|--------|-----------------------------------------------------------------------------|
| pools     | hash   | tag of a pool -> its name; every pool that a door has submitted to          |
| api_keys  | set    | ids of all API keys, revoked ones too                                       |
| api_key   | hash   | `api_key:<id>`: digest of the secret, tenant, weight, limits, state         |
| key_use   | string | `key_use:<id>:<kind>:<window>`: requests or tokens of a window; TTL         |
| open_use  | zset   | note of a job that is counted on a key -> when to look after it next, in ms |
| batch_use | hash   | `batch_use:<batch>`: line -> what it was counted with, "" once settled; TTL |
| shares    | zset   | `shares:<tenant>`: fairness share -> when it was used last, in ms; TTL      |
| stream    | string | `stream:<job>`: the form of a job's stream; TTL of the result               |
| readers   | zset   | `readers:<job>`: reader of a job's stream -> until when it counts; TTL      |
| chat      | zset   | `chat:<owner>:<chat>`: job that a chat waits for -> since when, in ms; TTL  |
"""

from __future__ import annotations

PREFIX = "{tokenbus}:"


def pools() -> str:
    """Return the hash of the pools that doors have submitted to, by their tags."""
    return f"{PREFIX}pools"


def api_keys() -> str:
    """Return the set of the ids of all API keys."""
    return f"{PREFIX}api_keys"


def api_key(key_id: str) -> str:
    """Return the hash of one API key."""
    return f"{PREFIX}api_key:{key_id}"


def stream_form(job_id: str) -> str:
    """Return the form in which a job's stream is told: JSON, TTL of a result."""
    return f"{PREFIX}stream:{job_id}"


def readers(job_id: str) -> str:
    """Return the readers of a job's stream at all doors, by the time until which they count."""
    return f"{PREFIX}readers:{job_id}"


def chat(owner: str, tag: str) -> str:
    """Return the jobs whose answers a chat of an owner waits for, by the time of their submit."""
    return f"{PREFIX}chat:{owner}:{tag}"


def key_use(key_id: str, kind: str, window: str) -> str:
    """Return the counter of a key's requests or tokens in a minute or a month."""
    return f"{PREFIX}key_use:{key_id}:{kind}:{window}"


def open_use() -> str:
    """Return the notes of jobs that are counted on keys, by the time of the next look at them."""
    return f"{PREFIX}open_use"


def batch_use(batch_id: str) -> str:
    """Return the notes of what the lines of a batch were counted with."""
    return f"{PREFIX}batch_use:{batch_id}"


def shares(tenant: str) -> str:
    """Return the zset of a tenant's fairness shares, by the time of their last use."""
    return f"{PREFIX}shares:{tenant}"
