#!lua flags=allow-oom
--@args holder ttl_ms:number
-- Take or keep the lease of the process that tells the pool's metrics; without a time, give it up.
local held_by = redis.call('GET', K.watcher)
if held_by and held_by ~= holder then
  return 0
end
if ttl_ms > 0 then
  redis.call('SET', K.watcher, holder, 'PX', ttl_ms)
elseif held_by then
  redis.call('DEL', K.watcher)
end
return 1
