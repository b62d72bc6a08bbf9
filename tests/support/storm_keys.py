"""The keys of one pool as a higher power sees them: copied, restored, aged, forgotten, counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tokenbus.producer.keys import Keys

if TYPE_CHECKING:
    from storm_audit import Audit
    from storm_wire import Wire

_DUMP = """
local out = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  out[#out + 1] = { key, redis.call('PTTL', key), redis.call('DUMP', key) }
end
return out
"""
_DELETE = """
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  redis.call('DEL', key)
end
"""
# TTLs run, and every stored time moves into the past.
_AGE = """
local ms = tonumber(ARGV[2])
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= ms then
    redis.call('DEL', key)
  elseif left >= 0 then
    redis.call('PEXPIRE', key, left - ms)
  end
  if string.find(key, ':job:', 1, true) then
    local deadline = tonumber(redis.call('HGET', key, 'deadline'))
    if deadline then
      redis.call('HSET', key, 'deadline', deadline - ms)
    end
  end
end
for _, name in ipairs({ ':ending', ':due' }) do
  local members = redis.call('ZRANGE', KEYS[1] .. name, 0, -1, 'WITHSCORES')
  for i = 1, #members, 2 do
    redis.call('ZADD', KEYS[1] .. name, members[i + 1] - ms, members[i])
  end
end
"""
# What is left of a pool at rest without a TTL.
AT_REST = {":floor", ":load", ":drain", ":bell", ":dead", ":workers", ":audit"}
AT_REST_PREFIXES = (":worker:", ":resting:")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys at one moment, and the books of that moment."""

    at_s: float
    values: list[tuple[bytes, int, bytes]]
    audit: Audit


class PoolKeys:
    """Every key of a pool; the server is not clustered, so that one script may see them all."""

    def __init__(self, wire: Wire, pool: str) -> None:
        self._wire = wire
        self._names = Keys(pool)
        self._pattern = f"{{tb:{pool}[:}}]*"

    def dump(self) -> list[tuple[bytes, int, bytes]]:
        """Copy all keys with their TTLs in ms, -1 for none."""
        return [tuple(entry) for entry in self._run(_DUMP)]

    def restore(self, values: list[tuple[bytes, int, bytes]]) -> None:
        """Bring a copy back in place of what is there."""
        self.delete()
        for key, ttl_ms, value in values:
            self._wire.send("RESTORE", key, max(ttl_ms, 0), value)
        for _ in values:
            if self._wire.read() != b"OK":
                raise RuntimeError("a key was not restored")

    def delete(self) -> None:
        """Delete all keys."""
        self._run(_DELETE)

    def pass_time(self, seconds: float) -> None:
        """Let time pass for every TTL and stored time."""
        self._run(_AGE, round(seconds * 1000))

    def forget_volatile(self) -> None:
        """Drop what a restart drops: scripts, leases and other keys that live for seconds."""
        self._wire.run("SCRIPT", "FLUSH")
        for worker in self._wire.run("SMEMBERS", self._names.of("workers")):
            self._wire.run("DEL", self._names.of("alive", worker.decode()))
        self._wire.run("DEL", self._names.of("intake"))

    def knows(self, job_id: str) -> bool:
        """Tell whether a job has a record."""
        return bool(self._wire.run("EXISTS", self._names.of("job", job_id)))

    def num_held(self, worker: str) -> int:
        """Count the jobs that a worker holds."""
        count: int = self._wire.run("HLEN", self._names.of("held", worker))
        return count

    def at_work(self) -> dict[str, Any]:
        """Name what keeps the pool from being at rest."""
        found: dict[str, Any] = {}
        for job in self._wire.run("ZRANGE", self._names.of("ending"), 0, -1):
            found[f"ending {job.decode()}"] = self._wire.run(
                "HGETALL", self._names.of("job", job.decode())
            )
        for name, value in self._wire.run("HGETALL", self._names.of("load")).items():
            if int(value):
                found[f"load {name.decode()}"] = int(value)
        for worker in self._wire.run("SMEMBERS", self._names.of("workers")):
            held = self._wire.run("HGETALL", self._names.of("held", worker.decode()))
            if held:
                found[f"held by {worker.decode()}"] = held
        return found

    def charges(self) -> dict[str, float]:
        """Read by how much each tenant's virtual time was changed in all."""
        entries = self._wire.run("HGETALL", f"{self._names.prefix}:audit")
        return {tenant.decode(): float(amount) for tenant, amount in entries.items()}

    def leaked(self) -> list[str]:
        """List keys without a TTL that a pool at rest should not have."""
        found = []
        for key, ttl_ms, _ in self.dump():
            name = key.decode().removeprefix(self._names.prefix)
            if ttl_ms < 0 and name not in AT_REST and not name.startswith(AT_REST_PREFIXES):
                found.append(key.decode())
        return sorted(found)

    def _run(self, script: str, *args: Any) -> Any:
        return self._wire.run("EVAL", script, 1, self._names.prefix, self._pattern, *args)
