"""What a token costs on its way from the engine's hand-off to the server, in CPU time by process.

Streams of the null engine at a set rate through a real worker and an embedded server; one process
subscribes to every channel and reads nothing into it, so that the server pays for delivery.

    python -P benchmarks/publishing.py --streams 256 --rate 50 --seconds 8 --publishers 0
    python -P benchmarks/publishing.py --streams 1000 --rate 100 --seconds 30 --publishers 4

`docs/bench.md` has the runs with readers that decode and check every token.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tokenbus.producer.client.async_client import AsyncClient
from tokenbus.producer.server.embedded import start_private

POOL = "publishing"
# What a worker's processes run, by what they do.
_MODULES = {
    "engine": b"tokenbus.worker.engine.process",
    "publisher": b"tokenbus.worker.publishing.publisher_process",
}
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_READER = """
import socket, sys
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
pattern = sys.argv[2].encode()
sock.sendall(b"*2\\r\\n$10\\r\\nPSUBSCRIBE\\r\\n$%d\\r\\n%b\\r\\n" % (len(pattern), pattern))
while sock.recv(1 << 20):
    pass
"""


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _children(pid: int) -> dict[str, list[int]]:
    """Group a worker's processes by what they do."""
    kinds: dict[str, list[int]] = {kind: [] for kind in _MODULES}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
        for kind, module in _MODULES.items():
            if module in command:
                kinds[kind].append(int(child))
    return kinds


async def _status(client: AsyncClient) -> dict[str, Any]:
    scripts = client.scripts
    async for key in scripts.redis.scan_iter(scripts.keys.of("status") + "*"):
        value = await scripts.redis.get(key)
        if value is not None:
            found: dict[str, Any] = json.loads(value)
            return found
    return {}


async def _until_running(client: AsyncClient, num_streams: int) -> None:
    while True:
        status = await _status(client)
        if status and status["engine"] and status["engine"]["num_running"] >= num_streams:
            return
        await asyncio.sleep(0.1)


async def _measure(client: AsyncClient, args: argparse.Namespace, worker: int) -> None:
    num_tokens = int(args.rate * (args.seconds + 30)) if args.rate else args.tokens
    for number in range(args.streams):
        await client.submit("x" * 64, max_tokens=num_tokens, seed=number, tenant=f"t{number % 16}")
    await _until_running(client, args.streams)
    await asyncio.sleep(2.0)
    server = int((await client.scripts.redis.info("server"))["process_id"])
    pids = {"worker": [worker], "server": [server], **_children(worker)}
    before = {kind: sum(map(_cpu_s, found)) for kind, found in pids.items()}
    first, started_at = (await _status(client))["counters"], time.monotonic()
    await asyncio.sleep(args.seconds)
    last, took_s = (await _status(client))["counters"], time.monotonic() - started_at
    tokens = last["tokens_logged"] - first["tokens_logged"]
    entries = last["log_entries"] - first["log_entries"]
    calls = last["log_calls"] - first["log_calls"]
    print(f"{tokens / took_s:,.0f} tokens/s logged, {entries / tokens:.3f} entries a token,")
    print(f"{entries / calls:.1f} entries a call; us of CPU per token:")
    for kind, found in pids.items():
        spent_s = sum(map(_cpu_s, found)) - before[kind]
        print(f"  {kind:<10}{spent_s / tokens * 1e6:6.2f}   ({spent_s / took_s:4.0%} of a core)")


def _start_worker(redis_url: str, args: argparse.Namespace) -> subprocess.Popen[bytes]:
    env = {
        "TOKENBUS_ENGINE": "null",
        "TOKENBUS_NULL_TOKENS_PER_S": str(args.rate),
        "TOKENBUS_MAX_NUM_SEQS": str(args.streams),
        "TOKENBUS_NUM_PAGES": str(args.streams * 256),
        "TOKENBUS_MAX_PULL_JOBS": "64",
        "TOKENBUS_PUBLISHERS": args.publishers,
        "TOKENBUS_LOG_LEVEL": "error",
    }
    command = [sys.executable, "-P", "-m", "tokenbus.producer.commands.cli", "worker"]
    command += ["--redis", redis_url, "--pool", POOL]
    return subprocess.Popen(command, env=os.environ | env)


def _start_reader(redis_url: str) -> subprocess.Popen[bytes]:
    path = redis_url.removeprefix("unix://")
    return subprocess.Popen([sys.executable, "-c", _READER, path, f"{{tb:{POOL}*:tok:*"])


async def _run(args: argparse.Namespace) -> None:
    server = await asyncio.to_thread(start_private)
    worker, reader = _start_worker(server.url, args), _start_reader(server.url)
    try:
        async with await AsyncClient.connect(server.url, pool=POOL) as client:
            await _measure(client, args, worker.pid)
    finally:
        for process in (worker, reader):
            process.kill()
            process.wait()
        await asyncio.to_thread(server.close)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--rate", type=float, default=50.0, help="tokens/s of each, 0 = flat out")
    parser.add_argument("--tokens", type=int, default=3500, help="of each where the rate is 0")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--publishers", default="auto")
    asyncio.run(_run(parser.parse_args()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
