#!lua flags=allow-oom
--@args cron tick_ms
-- Take a cron's tick, unless it or a later one was taken: 1 for the first.
local last = tonumber(redis.call('HGET', K.ticks, cron))
if last and last >= tonumber(tick_ms) then
  return 0
end
redis.call('HSET', K.ticks, cron, tick_ms)
return 1
