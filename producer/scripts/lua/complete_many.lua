#!lua flags=allow-oom
--@args at_once:flag log_ms:number result_ms record_ms:number pool_bytes tenant_bytes shard:number batch told:rest
--@keys pool shard
--@use completing: now record_of first_step keep_result why settle drop_past_bounds
--@use kept: touch_kept
-- Completion of jobs whose terminal entries stand: each once, by anyone. `at_once` does all of it in
-- this turn, for the logs of one shard on the same server; else it is the first step, and the jobs
-- lie in `ending` until the others are done.
--
-- The batch is one flat msgpack array, COLUMNS values a job; without a finish only the last steps
-- are asked for. Answered is for each job 1 (completed now), 0 (it was, or is gone) or why it could
-- not be; that one lies in `ending` then, so that a tick tries again. Behind that: jobs of other shards
-- whose results are to be dropped for room, and whether there is more to drop.
local COLUMNS = 7
-- Longer than an answer may be old from which an end follows (R10).
local UNOWNED_LOG_MS = 10000
local call = redis.call
-- What owners tell of the timelines, a text for each job; callers without any leave it out.
local lived = ARGV[told] and cmsgpack.unpack(ARGV[told])
local answers, leaving = {}, {}

-- The result has all that a reader gets after any cursor, so the log of a job that its worker ended
-- goes: a stream of a few entries takes seven times its bytes. What comes too late for the log finds
-- its end in the result (`tail`). That of version 1 stays for its time, that of a job that ended
-- without an owner for seconds: two may be ending it at once, of whom one of an earlier release looks
-- at the log alone.
local function let_expire(job, is_owned, version)
  local has_result = call('PEXPIRE', L.result .. job, result_ms) == 1
  if has_result and is_owned and version then
    call('DEL', L.log .. job)
  else
    local stays = has_result and version and math.min(log_ms, UNOWNED_LOG_MS) or log_ms
    call('PEXPIRE', L.log .. job, stays)
  end
end

local function complete(number, job, finish, ...)
  local record = record_of(job)
  local state = record[1]
  record[3] = record[3] or ''
  local is_open = state and state ~= 'done'
  if is_open and finish == '' then
    return 0
  end
  if is_open then
    first_step(number, job, record, lived and lived[number], finish, ...)
  end
  if at_once then
    leaving[#leaving + 1] = job
    let_expire(job, state == 'held', record[12])
    if state and not is_open then
      touch_kept(record[3])
    end
    keep_result(job, record, is_open and call('STRLEN', L.result .. job), record_ms)
  elseif is_open then
    call('ZADD', K.ending, now, job)
  end
  if is_open then
    call('PUBLISH', K.ended, job)
  end
  return is_open and 1 or 0
end

local items = cmsgpack.unpack(batch)
for first = 1, #items, COLUMNS do
  local number, job = (first - 1) / COLUMNS + 1, items[first]
  local ok, answer = pcall(complete, number, unpack(items, first, first + COLUMNS - 1))
  if not ok then
    call('ZADD', K.ending, now, job)
  end
  answers[number] = ok and answer or why(answer)
end
if #leaving > 0 then
  call('ZREM', K.ending, unpack(leaving))
end
for number, reason in pairs(settle()) do
  answers[number] = reason
end
local elsewhere, more = {}, 0
if at_once then
  elsewhere, more = drop_past_bounds(shard, record_ms, pool_bytes, tenant_bytes)
end
return { answers, elsewhere, more }
