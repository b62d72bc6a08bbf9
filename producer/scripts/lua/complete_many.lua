#!lua flags=allow-oom
--@args at_once:flag log_ms:number result_ms record_ms:number pool_bytes tenant_bytes shard:number batch told:rest
--@keys pool shard
--@use base: now_ms
--@use letters: dead_letter
--@use fairness: add_time raise_floor end_holding
--@use waiting: stop_waiting
--@use owning: take_out
--@use webhooks: open_hook
--@use usage: add_usage
--@use kept: note_kept touch_kept make_room fresh_ms
--@use dropping: drop_result
--@use recent: note_ended write_ended
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
local call, now = redis.call, now_ms()
-- What owners tell of the timelines, a text for each job; callers without any leave it out.
local lived = ARGV[told] and cmsgpack.unpack(ARGV[told])
local answers, leaving = {}, {}

-- What a tenant's jobs of a priority add up to: books are kept once per call and not per job.
local sums, by_lane = {}, {}

local function sum_of(priority, tenant)
  local lane = priority .. ':' .. tenant
  local sum = by_lane[lane]
  if not sum then
    sum = { priority = priority, tenant = tenant, items = {}, held = 0, time = 0, prompt = 0,
      cached = 0, completion = 0 }
    by_lane[lane] = sum
    sums[#sums + 1] = sum
  end
  return sum
end

-- What a done job is asked for, in a new hash: one that has held a request stays ten times as
-- large. How it ended in full is in the result.
local function write_done(job, record, finish)
  local key, ended = K.job .. job, string.match(finish, '^{"reason":"%a+"')
  local kept = { 'state', 'done', 'tenant', record[3], 'finish', ended and ended .. '}' or finish,
    'epoch', record[14] or 0, 'digest', record[13] or '' }
  if record[12] then
    kept[11], kept[12] = 'v', record[12]
  end
  call('DEL', key)
  call('HSET', key, unpack(kept))
  if record[11] and record[11] ~= '' then
    call('HSET', key, 'idem', record[11])
  end
  if record[15] and record[15] ~= '0' then
    call('HSET', key, 'attempts', record[15])
  end
end

local function first_step(number, job, record, finish, actual, failed, prompt, cached, completion)
  local state, tenant, priority = record[1], record[3], record[4]
  if state == 'held' then
    take_out(record[2], job, record[9])
  elseif state == 'waiting' or state == 'delayed' then
    stop_waiting(job, tenant, priority)
  end
  if failed == 1 and not record[7] then
    dead_letter(job, tenant, finish, call('HGET', K.job .. job, 'request') or '', now)
  end
  if record[8] then
    open_hook(job, tenant, record[8], finish, now)
  end
  if record[10] or state == 'delayed' then
    call('ZREM', K.due, 'd:' .. job, 'n:' .. job)
  end
  if not record[7] then
    note_ended(job, tenant, priority, record[16], finish, failed, prompt, cached, completion,
      record[15], record[2], record[17], lived and lived[number], now,
      (tonumber(record[18]) or 0) * (tonumber(record[19]) or 1))
  end
  write_done(job, record, finish)
  local sum = sum_of(priority, tenant)
  if state == 'held' then
    sum.held = sum.held + 1
  end
  if tenant ~= '' then
    sum.items[#sum.items + 1] = number
    sum.time = sum.time + (actual - (tonumber(record[6]) or 0)) / (tonumber(record[5]) or 1)
    sum.prompt, sum.cached = sum.prompt + prompt, sum.cached + cached
    sum.completion = sum.completion + completion
  end
end

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
  local record = call('HMGET', K.job .. job, 'state', 'owner', 'tenant', 'priority', 'weight',
    'charge', 'dead', 'callback', 'flag', 'deadline', 'idem', 'v', 'digest', 'epoch', 'attempts',
    'created', 'stamps', 'output', 'n')
  local state = record[1]
  record[3] = record[3] or ''
  local is_open = state and state ~= 'done'
  if is_open and finish == '' then
    return 0
  end
  if is_open then
    first_step(number, job, record, finish, ...)
  end
  if at_once then
    leaving[#leaving + 1] = job
    let_expire(job, state == 'held', record[12])
    if is_open then
      note_kept(job, record[3], call('STRLEN', L.result .. job), now)
    elseif state then
      touch_kept(record[3])
    end
    call('PEXPIRE', K.job .. job, record_ms)
    if record[11] and record[11] ~= '' then
      call('PEXPIRE', K.idem .. record[11], record_ms)
    end
  elseif is_open then
    call('ZADD', K.ending, now, job)
  end
  if is_open then
    call('PUBLISH', K.ended, job)
  end
  return is_open and 1 or 0
end

local function why(reason)
  return type(reason) == 'table' and reason.err or tostring(reason)
end

local function keep_books(sum)
  local priority, tenant = sum.priority, sum.tenant
  if sum.held > 0 then
    end_holding(priority, tenant, sum.held)
  end
  if #sum.items > 0 then
    add_time(priority, tenant, sum.time)
    raise_floor(priority)
    add_usage(tenant, #sum.items, sum.prompt, sum.cached, sum.completion, now)
  end
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
for _, sum in ipairs(sums) do
  local ok, reason = pcall(keep_books, sum)
  for _, number in ipairs(not ok and sum.items or {}) do
    answers[number] = why(reason)
  end
end

pcall(write_ended)

local elsewhere, more = {}, 0
if at_once then
  -- What strangers did to the lists must not keep jobs from being complete.
  local ok, dropped, is_more = pcall(make_room, now, record_ms, pool_bytes, tenant_bytes)
  for _, each in ipairs(ok and dropped or {}) do
    local job, ended = each[1], each[2]
    if shard == (tonumber(string.match(job, '^s(%d%d?%d?)%-')) or 0) then
      drop_result(job, ended + fresh_ms(record_ms) - now)
    else
      elsewhere[#elsewhere + 1] = job
    end
  end
  more = ok and is_more or 0
end
return { answers, elsewhere, more }
