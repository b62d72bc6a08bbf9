"""The pools of a server that have living workers: known by the channels on which these listen."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis.exceptions import RedisError

from tokenbus.producer.server.cluster import ClusterRedis

if TYPE_CHECKING:
    from tokenbus.producer.scripts import Scripts


async def living_pools(scripts: Scripts) -> list[str] | None:
    """Return the names of the pools in which workers listen, in the database of this client.

    Every worker listens on a channel of its own for cancels. No key is scanned.
    Returns: None where the server does not tell: it refuses the question, or is a cluster, whose
        nodes know their own listeners only.
    """
    if isinstance(scripts.redis, ClusterRedis):
        return None
    own = scripts.keys.of("ctl")
    head, tail = "{tb:", own.removeprefix(scripts.keys.prefix)
    try:
        channels = await scripts.redis.pubsub_channels(f"{head}*}}{tail}*")
    except RedisError:
        return None
    names = {channel.decode(errors="replace").removeprefix(head) for channel in channels}
    return sorted({name.partition("}")[0] for name in names})
