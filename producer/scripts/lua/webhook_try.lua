#!lua flags=allow-oom
--@args job claim outcome attempt body delay_ms:number max_age_ms:number keep_ms:number
--@use base: now_ms
-- Record one try of a hook and what follows from it; a settled hook never changes again.
local key = K.hook .. job
local hook = redis.call('HMGET', key, 'state', 'claims', 'created')
if not hook[1] then
  return 'unknown'
end
if hook[1] ~= 'due' then
  return hook[1]
end
local now = now_ms()
if outcome ~= 'postpone' then
  local number = redis.call('HINCRBY', key, 'tries', 1)
  redis.call('HSET', key, 'try:' .. number, string.format('%.0f ', now) .. attempt)
end
local state = outcome
if outcome == 'retry' or outcome == 'postpone' then
  if body ~= '' then
    redis.call('HSETNX', key, 'body', body)
  end
  local left = hook[3] + max_age_ms - now
  if left > 0 then
    -- A caller that overslept its lease leaves the time of the next try to the later one.
    if hook[2] == claim then
      redis.call('ZADD', K.hooks, now + math.min(delay_ms, left), job)
    end
    return 'due'
  end
  state = 'expired'
end
redis.call('HSET', key, 'state', state)
redis.call('HDEL', key, 'body')
redis.call('ZREM', K.hooks, job)
redis.call('PEXPIRE', key, keep_ms)
return state
