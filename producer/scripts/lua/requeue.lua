#!lua flags=allow-oom
--@args worker job epoch marker:number logged:number crashed:flag max_attempts:number
--@args cause place:number since:number suspected:number company:number beside:flag sound:flag passed told:rest
--@use base: now_ms failure
--@use waiting: load_job wait_in
--@use ending: to_ending
--@use owning: is_held let_go
--@use evidence: evidence_of
--@use blame: acquit blame_engine blame_worker blame_log keep_evidence
--@use stamps: stamped
-- Give a held job back; refused unless this worker holds it at this epoch. What a caller of an
-- earlier release leaves out says that a worker vanished with it.
if not is_held(worker, job, epoch) then
  return 'refused'
end
local record = redis.call('HMGET', K.job .. job, 'tenant', 'priority', 'attempts', 'flag', 'epoch',
  'prompt', 'output', 'n', 'logged', 'evidence', 'stamps')
local tenant, priority = record[1], record[2]
if not tenant then
  redis.call('HDEL', K.held .. worker, job)
  return 'refused'
end
let_go(worker, job, tenant, priority)
local raised = math.max(tonumber(record[5]), marker)
logged = math.max(logged, tonumber(record[9]) or 0)
local now = now_ms()
local why, lived = ARGV[told] or '', ARGV[told + 1]
local reason = crashed and (cause and cause ~= '' and cause or 'worker') or why
redis.call('HSET', K.job .. job, 'epoch', raised, 'logged', logged,
  'stamps', stamped(record[11], lived, 'b', now, reason .. ':' .. logged))

local attempts = 0
if crashed or (passed and passed ~= '') then
  local found, guilty = evidence_of(record[10], record[3]), false
  if passed == 'all' then
    acquit(found)
  elseif passed == 'alone' then
    found.tried = 1
  end
  if crashed and cause == 'engine' then
    guilty = blame_engine(found, place, since, suspected, company, beside, sound)
  elseif crashed and cause == 'log' then
    guilty = blame_log(found)
  elseif crashed then
    guilty = blame_worker(found, logged, suspected or 1, tonumber(record[8]) or 1)
  end
  attempts = keep_evidence(job, found, guilty)
end

local finish
if record[4] == 'cancel' then
  finish = cjson.encode({ reason = 'cancelled' })
elseif record[4] == 'expire' then
  finish = cjson.encode({ reason = 'expired' })
elseif crashed and attempts >= max_attempts then
  finish = failure('poison', cjson.null, cause == 'log'
    and 'its log could not be continued, three times in a row'
    or 'the engine died whenever it ran this job, last with no other suspect beside it')
end
if finish then
  to_ending(job, raised + 1, finish, now)
  return 'ending'
end
load_job(job, tenant, priority, record[6], record[8] * record[7])
wait_in(job, tenant, priority, true)
return 'waiting'
