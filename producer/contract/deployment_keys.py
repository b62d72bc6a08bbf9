"""Names of keys that belong to no pool: what a deployment's doors share, in one hash slot.

All begin with `{tokenbus}:`, so that a script or a transaction may touch several of them on a
cluster too. They lie in the database of the server's URL.

| name          | type   | lives                                                                   |
|---------------|--------|-------------------------------------------------------------------------|
| pools         | hash   | tag of a pool -> its name; every pool that a door has submitted to      |
| api_keys      | set    | ids of all API keys, revoked ones too                                   |
| api_key       | hash   | `api_key:<id>`: digest of the secret, tenant, weight, limits, state     |
| key_use       | string | `key_use:<id>:<kind>:<window>`: requests or tokens of a minute or month |
| shares        | zset   | `shares:<tenant>`: fairness share -> when it was used last, in ms       |
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
