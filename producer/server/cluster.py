"""Redis Cluster: many nodes behind the interface of one connection.

Every script touches one hash slot, so each call goes to one node; redis-py finds it and follows
moves. Calls are not repeated here: what a lost call did is settled by the rules of reconciling.
A message published on any node reaches all of them, so one node carries all subscriptions.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any, cast

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import ConnectionPool

from tokenbus.producer.server.redis_py import OnePass, cluster_options

if TYPE_CHECKING:
    from redis.asyncio.client import PubSub
    from redis.asyncio.cluster import ClusterNode
    from redis.asyncio.connection import AbstractConnection

# Logs of a pool are spread over this many slots; so many that a few nodes get equal parts.
NUM_SHARDS = 16


class ClusterRedis(RedisCluster):
    """A client of all nodes, as far as tokenbus uses a client of one."""

    @property
    def connection_pool(self) -> NodeConnections:  # type: ignore[override] # as far as ours use it
        """Return a source of connections of one's own, to whichever node is there."""
        return NodeConnections(self)

    def pubsub(self, **options: Any) -> PubSub:
        """Listen through one node."""
        pool = ConnectionPool(**self.any_node().connection_kwargs)
        return Redis(connection_pool=pool).pubsub(**options)

    async def info(self, *sections: str, **_: Any) -> dict[str, Any]:  # type: ignore[override] # the same
        """Ask one node for its state."""
        await self.initialize()
        found = await self.execute_command("INFO", *sections, target_nodes=self.get_default_node())
        return cast("dict[str, Any]", found)

    async def time(self, **_: Any) -> tuple[int, int]:
        """Ask one node for its time: seconds and microseconds."""
        await self.initialize()
        found = await self.execute_command("TIME", target_nodes=self.get_default_node())
        return int(found[0]), int(found[1])

    def pipeline(self, transaction: Any = None, shard_hint: Any = None) -> OnePass:  # noqa: ARG002 -- redis-py's
        """Collect commands, to be sent together to the nodes that they belong to."""
        # Abstract only to the stubs: a pipeline of a cluster has no connection pool.
        return OnePass(self)  # type: ignore[abstract]

    def any_node(self) -> ClusterNode:
        """Return a node that may be there, another one at every try."""
        manager: Any = self.nodes_manager
        nodes = list((manager.nodes_cache or manager.startup_nodes).values())
        return cast("ClusterNode", random.choice(nodes))

    async def node_of(self, key: str) -> ClusterNode:
        """Return the node that serves a key, as far as is known."""
        await self.initialize()
        manager: Any = self.nodes_manager
        return cast("ClusterNode", manager.get_node_from_slot(self.keyslot(key)))


class NodeConnections:
    """Makes connections to one node, or to any of the cluster; closes those of the client."""

    def __init__(self, redis: ClusterRedis, node: ClusterNode | None = None) -> None:
        self._redis = redis
        self._node = node

    def make_connection(self) -> AbstractConnection:
        """Make a connection that nobody else uses; it is not open yet."""
        node = self._node or self._redis.any_node()
        return cast("AbstractConnection", node.connection_class(**node.connection_kwargs))

    async def disconnect(self, inuse_connections: bool = True) -> None:  # noqa: ARG002 -- redis-py's
        """Close every connection of the client; it opens others when it is used again."""
        await self._redis.aclose()


def make_cluster(url: str, **options: Any) -> ClusterRedis:
    """Make a client of the cluster to which the node belongs that the options name."""
    return cast("ClusterRedis", ClusterRedis.from_url(url, **cluster_options() | options))
