#!lua flags=allow-oom
-- Take a cron's tick, unless it or a later one was taken: 1 for whoever is first.
local cron, tick = ARGV[1], tonumber(ARGV[2])
local last = tonumber(redis.call('HGET', K.ticks, cron))
if last and last >= tick then
  return 0
end
redis.call('HSET', K.ticks, cron, ARGV[2])
return 1
