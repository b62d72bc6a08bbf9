#!lua flags=allow-oom
--@args worker is_drained:flag
--@use base: now_ms ring
-- Let a worker take no more jobs, or take some again; what it holds goes on. Returns whether it
-- lives, and since when it takes nothing, '' if it does. Jobs of prefixes that are at home with it
-- are anybody's meanwhile, and the suspect that it has claimed is anyone's.
local key = K.worker .. worker
if redis.call('EXISTS', K.alive .. worker) == 0 then
  return { 0, '' }
end
local since = redis.call('HGET', key, 'drained')
if is_drained and not since then
  since = string.format('%.0f', now_ms())
  local claim = redis.call('HGET', key, 'claim')
  if claim then
    redis.call('HDEL', K.job .. claim, 'claimant')
    redis.call('HDEL', key, 'claim')
  end
  redis.call('HSET', key, 'drained', since, 'room', 0)
elseif since and not is_drained then
  redis.call('HDEL', key, 'drained')
  since = nil
end
if redis.call('EXISTS', K.backlog .. '0', K.backlog .. '1', K.backlog .. '2') > 0 then
  ring()
end
return { 1, since or '' }
