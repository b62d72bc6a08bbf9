#!lua flags=allow-oom
--@args limit:number lease_ms:number
--@use base: now_ms
-- Hand out hooks that are due. Each is another's again after `lease_ms`, should the caller die.
local now = now_ms()
local out = {}
-- A service of version 1 would tell the receiver an address in place of the id, so it finds none.
for _, job in ipairs(redis.call('ZRANGEBYSCORE', K.hooks1, '-inf', now, 'LIMIT', 0, limit)) do
  redis.call('ZADD', K.hooks, now, job)
  redis.call('ZREM', K.hooks1, job)
end
for _, job in ipairs(redis.call('ZRANGEBYSCORE', K.hooks, '-inf', now, 'LIMIT', 0, limit)) do
  local key = K.hook .. job
  local hook = redis.call('HMGET', key, 'state', 'tenant', 'callback', 'finish', 'created', 'tries',
    'body')
  if hook[1] == 'due' then
    redis.call('ZADD', K.hooks, now + lease_ms, job)
    out[#out + 1] = { job, redis.call('HINCRBY', key, 'claims', 1), hook[2], hook[3], hook[4],
      tonumber(hook[5]), tonumber(hook[6]), hook[7] or '' }
  else
    redis.call('ZREM', K.hooks, job)
  end
end
return out
