#!lua flags=allow-oom
--@args worker serial ttl_ms capacity
--@use base: now_ms
-- Prolong a worker's lease and return what it holds, and the server's time; with a serial, reconcile.
redis.call('SET', K.alive .. worker, capacity, 'PX', ttl_ms)
redis.call('SADD', K.workers, worker)
if serial ~= '' then
  local stored = tonumber(redis.call('HGET', K.worker .. worker, 'serial'))
  if not stored or tonumber(serial) > stored then
    redis.call('HSET', K.worker .. worker, 'serial', serial)
  end
end
return { redis.call('HGETALL', K.held .. worker), redis.call('HGETALL', K.flags .. worker), now_ms() }
