--@offers now record_of first_step keep_result why settle drop_past_bounds
--@use base: now_ms
--@use letters: dead_letter
--@use fairness: add_time raise_floor end_holding
--@use waiting: stop_waiting
--@use owning: take_out
--@use webhooks: open_hook
--@use usage: add_usage
--@use kept: note_kept make_room fresh_ms
--@use dropping: drop_result
--@use recent: note_ended write_ended
-- What the completion of jobs changes in their pool, as two scripts do it: of jobs whose terminal entries
-- stand, and of jobs that are answered whole in the same turn.
local now = now_ms()

local function record_of(job)
  return redis.call('HMGET', K.job .. job, 'state', 'owner', 'tenant', 'priority', 'weight',
    'charge', 'dead', 'callback', 'flag', 'deadline', 'idem', 'v', 'digest', 'epoch', 'attempts',
    'created', 'stamps')
end

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
  redis.call('DEL', key)
  redis.call('HSET', key, unpack(kept))
  if record[11] and record[11] ~= '' then
    redis.call('HSET', key, 'idem', record[11])
  end
  if record[15] and record[15] ~= '0' then
    redis.call('HSET', key, 'attempts', record[15])
  end
end

-- The record `done`, out of what is held or waits. `lived` is what the owner tells of the timeline.
local function first_step(number, job, record, lived, finish, actual, failed, prompt, cached,
  completion)
  local state, tenant, priority = record[1], record[3], record[4]
  if state == 'held' then
    take_out(record[2], job, record[9])
  elseif state == 'waiting' or state == 'delayed' then
    stop_waiting(job, tenant, priority)
  end
  if failed == 1 and not record[7] then
    dead_letter(job, tenant, finish, redis.call('HGET', K.job .. job, 'request') or '', now)
  end
  if record[8] then
    open_hook(job, tenant, record[8], finish, now)
  end
  if record[10] or state == 'delayed' then
    redis.call('ZREM', K.due, 'd:' .. job, 'n:' .. job)
  end
  if not record[7] then
    note_ended(job, tenant, priority, record[16], finish, failed, prompt, cached, completion,
      record[15], record[2], record[17], lived, now)
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

-- The last step where the result lies here: it counts against the bounds, and record and idempotency entry
-- expire.
local function keep_result(job, record, bytes, record_ms)
  if bytes then
    note_kept(job, record[3] or '', bytes, now)
  end
  redis.call('PEXPIRE', K.job .. job, record_ms)
  if record[11] and record[11] ~= '' then
    redis.call('PEXPIRE', K.idem .. record[11], record_ms)
  end
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

-- Write what was added up. Returns why it could not be for some jobs, by their numbers.
local function settle()
  local whys = {}
  for _, sum in ipairs(sums) do
    local ok, reason = pcall(keep_books, sum)
    for _, number in ipairs(not ok and sum.items or {}) do
      whys[number] = why(reason)
    end
  end
  pcall(write_ended)
  return whys
end

-- Drop results past the bounds. Returns the jobs of other shards that lose theirs, and whether there is more
-- to drop. What strangers did to the lists must not keep jobs from being complete.
local function drop_past_bounds(shard, record_ms, pool_bytes, tenant_bytes)
  local elsewhere = {}
  local ok, dropped, is_more = pcall(make_room, now, record_ms, pool_bytes, tenant_bytes)
  for _, each in ipairs(ok and dropped or {}) do
    local job, ended = each[1], each[2]
    if shard == (tonumber(string.match(job, '^s(%d%d?%d?)%-')) or 0) then
      drop_result(job, ended + fresh_ms(record_ms) - now)
    else
      elsewhere[#elsewhere + 1] = job
    end
  end
  return elsewhere, ok and is_more or 0
end
