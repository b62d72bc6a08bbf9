#!lua flags=allow-oom
--@use drain_rate: drain_rate
-- What waits, and how fast it drains (tokens per ms as text, empty as long as none was measured).
local waiting = redis.call('HMGET', K.load, 'tokens', 'jobs')
local rate = drain_rate()
return { tonumber(waiting[1]) or 0, tonumber(waiting[2]) or 0,
  rate and string.format('%.6f', rate) or '' }
