#!lua flags=allow-oom
--@args job tenant
--@use base: now_ms
--@use naming: tenants_job
--@use waiting: stop_waiting
--@use ending: to_ending ending_of
-- Cancel a job in whatever state it is; safe to repeat. With a tenant, only if it is that one's.
job = tenants_job(job, tenant)
if not job then
  return { 'unknown' }
end
local record = redis.call('HMGET', K.job .. job, 'state', 'epoch', 'owner', 'tenant', 'priority')
local state = record[1]
if not state then
  return { 'unknown' }
end
if state == 'done' then
  return { 'done' }
end
if state == 'held' then
  redis.call('HSET', K.job .. job, 'flag', 'cancel')
  redis.call('HSET', K.flags .. record[3], job, 'cancel')
  redis.call('PUBLISH', K.ctl .. record[3], 'cancel ' .. record[2] .. ' ' .. job)
  return { 'held', job }
end
if state ~= 'ending' then
  stop_waiting(job, record[4], record[5])
  to_ending(job, record[2] + 1, cjson.encode({ reason = 'cancelled' }), now_ms())
end
return { 'ending', ending_of(job) }
