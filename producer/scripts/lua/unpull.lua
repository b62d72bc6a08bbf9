#!lua flags=allow-oom
--@args worker job epoch prompt:number loses_prefix:flag
--@use base: now_ms
--@use fairness: add_time
--@use waiting: load_job wait_in
--@use ending: to_ending
--@use owning: is_held let_go
--@use stamps: stamped
-- Hand back a fresh job that turned out larger than it was counted, charge refunded. A job that
-- shares less with others of its prefix than was counted loses the prefix, so that it counts in full.
if not is_held(worker, job, epoch) then
  return 'refused'
end
local record = redis.call('HMGET', K.job .. job, 'tenant', 'priority', 'flag', 'epoch', 'output',
  'n', 'charge', 'weight', 'stamps')
local tenant, priority = record[1], record[2]
if not tenant then
  redis.call('HDEL', K.held .. worker, job)
  return 'refused'
end
add_time(priority, tenant, -(tonumber(record[7]) or 0) / (tonumber(record[8]) or 1))
let_go(worker, job, tenant, priority)
local now = now_ms()
redis.call('HSET', K.job .. job, 'prompt', prompt, 'charge', 0,
  'stamps', stamped(record[9], nil, 'b', now, 'size:0'))
if loses_prefix then
  redis.call('HDEL', K.job .. job, 'prefix')
end
if record[3] then
  local reason = record[3] == 'cancel' and 'cancelled' or 'expired'
  to_ending(job, record[4] + 1, cjson.encode({ reason = reason }), now)
  return 'ending'
end
load_job(job, tenant, priority, prompt, record[6] * record[5])
wait_in(job, tenant, priority, true)
return 'waiting'
