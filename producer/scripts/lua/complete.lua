#!lua flags=allow-oom
--@args job finish actual:number failed:flag
--@use base: now_ms
--@use letters: dead_letter
--@use fairness: add_time raise_floor
--@use waiting: stop_waiting
--@use owning: let_go
--@use webhooks: open_hook
--@use usage: count_usage
-- First step of completion, after the terminal entry was written: once per job, by anyone.
local record = redis.call('HMGET', K.job .. job, 'state', 'owner', 'tenant', 'priority', 'weight',
  'charge', 'request', 'dead', 'callback')
local state, tenant, priority = record[1], record[3], record[4]
if not state or state == 'done' then
  return 0
end
local now = now_ms()
if state == 'held' then
  let_go(record[2], job, tenant, priority)
elseif state == 'waiting' or state == 'delayed' then
  stop_waiting(job, tenant, priority)
end
if tenant ~= '' then
  add_time(priority, tenant, (actual - (tonumber(record[6]) or 0)) / (tonumber(record[5]) or 1))
  raise_floor(priority)
  count_usage(tenant, finish, now)
end
if failed and not record[8] then
  dead_letter(job, tenant, finish, record[7] or '', now)
end
redis.call('HSET', K.job .. job, 'state', 'done', 'finish', finish, 'charge', actual)
redis.call('HDEL', K.job .. job, 'request', 'flag', 'callback')
redis.call('ZADD', K.ending, now, job)
redis.call('ZREM', K.due, 'd:' .. job, 'n:' .. job)
if record[9] then
  open_hook(job, tenant, record[9], finish, now)
end
redis.call('PUBLISH', K.ended, job)
return 1
