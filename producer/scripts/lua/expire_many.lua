#!lua flags=allow-oom
--@args ttl_ms:number pool_bytes tenant_bytes batch
--@use base: now_ms
--@use kept: note_kept touch_kept make_room
-- Last step of completion where logs lie elsewhere: the jobs leave `ending`; record and idempotency
-- entry expire after log and result. The batch is a msgpack array, for each job its address and the
-- bytes of its result. Answered is whose results are to be dropped for room, and whether there are
-- more.
local items, now = cmsgpack.unpack(batch), now_ms()
for first = 1, #items, 2 do
  local job, bytes = items[first], items[first + 1]
  local record = redis.call('HMGET', K.job .. job, 'state', 'idem', 'tenant')
  if not record[1] or record[1] == 'done' then
    redis.call('ZREM', K.ending, job)
    if record[1] and redis.call('PTTL', K.job .. job) < 0 then
      note_kept(job, record[3], bytes, now)
    elseif record[1] then
      touch_kept(record[3])
    end
    redis.call('PEXPIRE', K.job .. job, ttl_ms)
    if record[2] and record[2] ~= '' then
      redis.call('PEXPIRE', K.idem .. record[2], ttl_ms)
    end
  end
end
local dropped, more = make_room(now, ttl_ms, pool_bytes, tenant_bytes)
local names = {}
for number, each in ipairs(dropped) do
  names[number] = each[1]
end
return { names, more }
