#!lua flags=allow-oom
--@args limit:number stale_ms:number
--@use base: now_ms
--@use waiting: stop_waiting wait_in
--@use later: forget_later
--@use ending: to_ending ending_of
--@use adopt: adopt_due adopt_endings
--@use stamps: stamped
-- Release delays, pass deadlines, and hand out what has to end. Bounded by `limit` per kind.
local now = now_ms()
local endings = {}

local function expire(job, record)
  local state, epoch, owner = record[1], record[2], record[3]
  if state == 'held' then
    redis.call('HSET', K.job .. job, 'flag', 'expire')
    redis.call('HSET', K.flags .. owner, job, 'expire')
    redis.call('PUBLISH', K.ctl .. owner, 'expire ' .. epoch .. ' ' .. job)
  elseif state == 'waiting' or state == 'delayed' then
    stop_waiting(job, record[4], record[5])
    to_ending(job, epoch + 1, cjson.encode({ reason = 'expired' }), now)
    endings[#endings + 1] = ending_of(job)
  end
end

adopt_due()
adopt_endings(now - stale_ms)
local due = redis.call('ZRANGEBYSCORE', K.due, '-inf', now, 'WITHSCORES', 'LIMIT', 0, limit)
for i = 1, #due, 2 do
  local member, due_ms = due[i], due[i + 1]
  local kind, job = string.sub(member, 1, 1), string.sub(member, 3)
  local record = redis.call('HMGET', K.job .. job, 'state', 'epoch', 'owner', 'tenant', 'priority',
    'stamps')
  redis.call('ZREM', K.due, member)
  if kind == 'd' then
    expire(job, record)
  elseif record[1] == 'delayed' then
    wait_in(job, record[4], record[5], false)
    forget_later(due_ms)
    redis.call('HSET', K.job .. job, 'stamps', stamped(record[6], nil, 'r', now))
  end
end

local lying = redis.call('ZRANGEBYSCORE', K.ending, '-inf', now - stale_ms, 'LIMIT', 0, limit)
for _, job in ipairs(lying) do
  if redis.call('EXISTS', K.job .. job) == 1 then
    redis.call('ZADD', K.ending, now, job)
    endings[#endings + 1] = ending_of(job)
  else
    redis.call('ZREM', K.ending, job)
  end
end
return { endings, (#due == 2 * limit or #lying == limit) and 1 or 0 }
