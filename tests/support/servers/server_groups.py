"""Servers that belong together: three masters of a cluster; a master, its replica, a sentinel."""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError
from servers.ports import free_port
from workers.stubs import until

if TYPE_CHECKING:
    from types import TracebackType

NUM_SLOTS = 16384
MASTER = "bus"


# A machine under load keeps a server from answering for seconds; the tests say when it is time. A
# failover that takes long is not given up, for nobody asks for it again.
SENTINEL_CONFIG = """\
sentinel monitor {name} 127.0.0.1 {port} 1
sentinel down-after-milliseconds {name} 60000
sentinel failover-timeout {name} 60000
"""
# A master that no replica follows any more takes nothing: another one may rule by now.
SAFE = ("--min-replicas-to-write", "1", "--repl-diskless-sync-delay", "0")


class ServerGroup:
    """Server processes on ports of this machine; they end with the group."""

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self._temporary = tempfile.TemporaryDirectory(prefix="tb-group-")
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._clients: dict[int, Redis] = {}

    async def start(self, *options: str, config: str = "", sentinel: bool = False) -> int:
        """Start a server and wait until it answers; return its port."""
        port = free_port()
        folder = Path(self._temporary.name) / str(port)
        folder.mkdir()
        file = folder / "server.conf"
        file.write_text(config)
        given = ["--port", str(port), "--dir", str(folder), "--bind", "127.0.0.1"]
        given += ["--sentinel"] if sentinel else ["--save", "", *options]
        quiet = asyncio.subprocess.DEVNULL
        self._processes[port] = await asyncio.create_subprocess_exec(
            self._binary, str(file), *given, stdout=quiet, stderr=quiet
        )
        await until(lambda: self._answers(port))
        return port

    def client(self, port: int) -> Any:
        """Return a client of one server."""
        if port not in self._clients:
            self._clients[port] = Redis(host="127.0.0.1", port=port)
        return self._clients[port]

    async def kill(self, port: int) -> None:
        """Kill one server."""
        self._processes[port].kill()
        await self._processes[port].wait()

    async def _answers(self, port: int) -> bool:
        assert self._processes[port].returncode is None, f"the server on port {port} has ended"
        try:
            return bool(await self.client(port).ping())
        except (RedisError, OSError):
            return False

    async def __aenter__(self) -> Self:
        """Return the empty group."""
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill all servers."""
        for client in self._clients.values():
            await client.aclose()
        for process in self._processes.values():
            if process.returncode is None:
                process.kill()
                await process.wait()
        self._temporary.cleanup()


async def start_cluster(group: ServerGroup, num_masters: int = 3) -> str:
    """Start masters that share all slots, as `redis-cli --cluster create` does; return the URL."""
    ports = [
        await group.start("--cluster-enabled", "yes", "--cluster-node-timeout", "60000")
        for _ in range(num_masters)
    ]
    share = -(-NUM_SLOTS // num_masters)
    for number, port in enumerate(ports):
        first, last = number * share, min((number + 1) * share, NUM_SLOTS) - 1
        await group.client(port).execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
        await group.client(port).execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
    for port in ports[1:]:
        await group.client(ports[0]).execute_command("CLUSTER", "MEET", "127.0.0.1", port)

    async def is_whole() -> bool:
        infos = [await group.client(port).execute_command("CLUSTER", "INFO") for port in ports]
        signs = (b"cluster_state:ok", b"cluster_known_nodes:%d\r" % num_masters)
        return all(sign in info for info in infos for sign in signs)

    await until(is_whole)
    return f"redis+cluster://127.0.0.1:{ports[0]}"


async def start_sentinels(group: ServerGroup) -> tuple[int, int, int, str]:
    """Start a master, its replica and a sentinel; return their ports and the URL."""
    master = await group.start(*SAFE)
    replica = await group.start("--replicaof", "127.0.0.1", str(master))
    await until(lambda: follows(group, replica))
    await until(lambda: _is_followed(group, master))
    sentinel = await group.start(
        config=SENTINEL_CONFIG.format(name=MASTER, port=master), sentinel=True
    )
    await until(lambda: _knows_a_replica(group, sentinel))
    return master, replica, sentinel, f"redis+sentinel://127.0.0.1:{sentinel}/{MASTER}"


async def follows(group: ServerGroup, replica: int) -> bool:
    """Tell whether a replica is in touch with its master."""
    try:
        info = await group.client(replica).info("replication")
    except RedisError:
        # A sentinel cuts off whoever is connected to a server whose role it changes.
        return False
    return bool(info.get("master_link_status") == "up")


async def rules(group: ServerGroup, replica: int) -> bool:
    """Tell whether a server is a master."""
    try:
        return bool((await group.client(replica).info("replication"))["role"] == "master")
    except RedisError:
        # Whoever was connected to a replica that is promoted is cut off.
        return False


async def fails_over(group: ServerGroup, sentinel: int) -> bool:
    """Let a sentinel promote a replica; False while it does not."""
    try:
        await group.client(sentinel).execute_command("SENTINEL", "FAILOVER", MASTER)
    except ResponseError as error:
        # A sentinel that has just begun to watch does not trust the replica yet.
        if str(error).startswith(("NOGOODSLAVE", "INPROG")):
            return False
        raise
    return True


async def _is_followed(group: ServerGroup, master: int) -> bool:
    return bool((await group.client(master).info("replication"))["min_slaves_good_slaves"])


async def _knows_a_replica(group: ServerGroup, sentinel: int) -> bool:
    return bool(await group.client(sentinel).execute_command("SENTINEL", "REPLICAS", MASTER))
