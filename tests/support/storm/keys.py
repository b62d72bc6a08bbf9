"""The keys of one pool as a higher power sees them: copied, restored, aged, forgotten, counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from storm.audit import TTL_SCALE, Grave

from tokenbus.producer.contract.keys import Keys

if TYPE_CHECKING:
    from storm.audit import Audit
    from storm.wire import Wire

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
_LOG = "return redis.call('XRANGE', ARGV[2], '-', '+')"
# TTLs run; the logs that expire are handed out, with the states of their jobs.
_AGE = f"""
local scaled = tonumber(ARGV[2]) * {TTL_SCALE}
local expired, buried = {{}}, {{}}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  local left = redis.call('PTTL', key)
  if left >= 0 and left <= scaled then
    expired[#expired + 1] = key
    local job = string.match(key, '}}:log:(.*)$')
    if job then
      local state = redis.call('HGET', KEYS[1] .. ':job:' .. job, 'state')
      buried[#buried + 1] = {{ job, state, redis.call('XRANGE', key, '-', '+') }}
    end
  elseif left >= 0 then
    redis.call('PEXPIRE', key, left - scaled)
  end
end
for _, key in ipairs(expired) do
  redis.call('DEL', key)
end
redis.call('SET', KEYS[1] .. ':now', ARGV[3])
return buried
"""
# Any date: the scripts compare times with each other only.
FIRST_MS = 1_700_000_000_000
# What is left of a pool at rest without a TTL.
AT_REST = {
    f":{name}"
    for name in ("floor", "load", "drain", "bell2", "dead", "letters", "workers2", "audit", "now")
}
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

    def pass_time(self, seconds: float, now_s: float) -> list[Grave]:
        """Let time pass for every TTL, up to `now_s`; return the logs that expired on the way."""
        buried = self._run(_AGE, round(seconds * 1000), FIRST_MS + round(now_s * 1000))
        return [
            Grave(job.decode(), state == b"done", [(entry_id, fields) for entry_id, fields in log])
            for job, state, log in buried
        ]

    def log(self, job_id: str) -> list[tuple[bytes, list[bytes]]]:
        """Return the entries of a job's log as they are."""
        entries = self._run(_LOG, self._names.log(job_id))
        return [(entry_id, fields) for entry_id, fields in entries]

    def result(self, job_id: str) -> bytes | None:
        """Return a job's result as it is."""
        value: bytes | None = self._wire.run("GET", self._names.result(job_id))
        return value

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
