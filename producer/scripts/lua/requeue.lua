#!lua flags=allow-oom
--@args worker job epoch marker:number logged:number crashed:flag max_attempts:number
--@use base: now_ms failure
--@use waiting: load_job wait_in
--@use ending: to_ending
--@use owning: is_held let_go
-- Give a held job back; refused unless this worker holds it at this epoch.
if not is_held(worker, job, epoch) then
  return 'refused'
end
local record = redis.call('HMGET', K.job .. job, 'tenant', 'priority', 'attempts', 'flag', 'epoch',
  'prompt', 'output', 'n', 'logged')
local tenant, priority = record[1], record[2]
if not tenant then
  redis.call('HDEL', K.held .. worker, job)
  return 'refused'
end
let_go(worker, job, tenant, priority)
local attempts = tonumber(record[3]) + (crashed and 1 or 0)
local raised = math.max(tonumber(record[5]), marker)
logged = math.max(logged, tonumber(record[9]) or 0)
redis.call('HSET', K.job .. job, 'attempts', attempts, 'epoch', raised, 'logged', logged)
local finish
if record[4] == 'cancel' then
  finish = cjson.encode({ reason = 'cancelled' })
elseif record[4] == 'expire' then
  finish = cjson.encode({ reason = 'expired' })
elseif attempts >= max_attempts then
  finish = failure('poison', cjson.null,
    'every worker that ran this job died, ' .. attempts .. ' in a row')
end
if finish then
  to_ending(job, raised + 1, finish, now_ms())
  return 'ending'
end
load_job(job, tenant, priority, record[6] + record[8] * record[7])
wait_in(job, tenant, priority, true)
return 'waiting'
