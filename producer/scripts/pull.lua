#!lua flags=allow-oom
--@use base fairness drain waiting ending owning entry
-- Take as many jobs as fit the budget, fairest first. Bounded: 16 tenants per priority, 64 entries.
local worker, serial = ARGV[1], ARGV[2]
local budget, page, total_pages = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local max_jobs, may_overflow = tonumber(ARGV[6]), ARGV[7] == '1'
local default_output, too_large_ms = tonumber(ARGV[8]), tonumber(ARGV[9])
local last_class = tonumber(ARGV[10])
local MAX_TENANTS, MAX_ENTRIES, SUSPECT_ATTEMPTS, SUSPECT_PATIENCE_MS = 16, 64, 2, 2000

if redis.call('HGET', K.worker .. worker, 'serial') ~= serial then
  return { 'reconcile', {}, {} }
end
redis.call('SADD', K.workers, worker)
if redis.call('HEXISTS', K.worker .. worker, 'suspect') == 1 then
  return { 'suspect', {}, {} }
end

local argument = 11
local function read_pairs()
  local map = {}
  for _ = 1, tonumber(ARGV[argument]) do
    map[ARGV[argument + 1]] = tonumber(ARGV[argument + 2])
    argument = argument + 2
  end
  argument = argument + 1
  return map
end
local expected, cached = read_pairs(), read_pairs()

local now = now_ms()
local jobs, endings, looked, tokens_pulled = {}, {}, 0, 0
local suspect_waits, is_clearing = false, false
local num_held = redis.call('HLEN', K.held .. worker)

local function pages(tokens)
  return math.ceil(tokens / page)
end

-- Pages that the job needs now: uncached prompt, and per choice what is logged and expected.
local function cost_of(found, lane)
  local logged = math.ceil(found.logged / found.n)
  local output = math.min(found.output, expected[lane] or default_output)
  output = math.max(output, math.min(found.output, logged + page))
  local known = math.min(cached[found.prefix] or 0, math.max(found.prompt - 1, 0))
  return pages(found.prompt) - math.floor(known / page) + found.n * pages(output),
    found.prompt + found.n * output
end

local function fail_waiting(job, tenant, priority, epoch, code, field, message)
  stop_waiting(job, tenant, priority)
  to_ending(job, epoch + 1, failure(code, field, message), now)
  endings[#endings + 1] = ending_of(job)
end

-- A job larger than this worker's pool is left to a larger worker; it fails when none has lived
-- for a while.
local function too_large(found, record, priority)
  local tokens = found.prompt + found.n * found.output
  for _, other in ipairs(redis.call('SMEMBERS', K.workers)) do
    if other ~= worker and (tonumber(redis.call('GET', K.alive .. other)) or 0) >= tokens then
      redis.call('HDEL', K.job .. found.job, 'large_since')
      return
    end
  end
  local since = tonumber(redis.call('HGET', K.job .. found.job, 'large_since'))
  if not since then
    redis.call('HSET', K.job .. found.job, 'large_since', now)
  elseif now - since >= too_large_ms then
    fail_waiting(found.job, found.tenant, priority, tonumber(record[2]), 'too_large', 'max_tokens',
      'prompt and output of ' .. tokens .. ' tokens exceed the pages of every worker; this one has '
      .. total_pages * page .. ' tokens')
  end
end

local function take(found, record, stream, id, priority, in_lane, need, charge, overflow)
  local job, tenant = found.job, found.tenant
  local epoch, attempts = tonumber(record[2]) + 1, tonumber(record[3])
  local charged = tonumber(record[6]) or 0
  tokens_pulled = tokens_pulled + (tonumber(record[10]) or 0)
  begin_holding(priority, tenant)
  redis.call('HSET', K.held .. worker, job, epoch)
  drop_entry(stream, id, priority, in_lane and tenant or nil)
  unload(job, tenant, priority)
  redis.call('HSET', K.job .. job, 'state', 'held', 'epoch', epoch, 'owner', worker,
    'stream', '', 'entry', '')
  local time = 0
  if charged == 0 then
    time = charge / (tonumber(record[7]) or 1)
    redis.call('HSET', K.job .. job, 'charge', charge)
    add_time(priority, tenant, time)
  end
  if attempts >= SUSPECT_ATTEMPTS then
    redis.call('HSET', K.worker .. worker, 'suspect', job)
    redis.call('HDEL', K.worker .. worker, 'claim')
    redis.call('HDEL', K.job .. job, 'claimant')
    max_jobs = 0
  end
  local deadline = tonumber(record[8])
  jobs[#jobs + 1] = { job, epoch, attempts, tonumber(priority), tenant, need, overflow and 1 or 0,
    found.logged, deadline and math.max(0, deadline - now) or -1, record[9] or '',
    now - (tonumber(record[12]) or now) }
  return time
end

-- A suspect that found no empty worker for a while is claimed by one of the busy when its turn
-- comes: that one takes nothing more until it holds nothing, and then the suspect, else under steady
-- load it would never run.
local function claims(job, id)
  if now - tonumber(string.match(id, '^%d+')) < SUSPECT_PATIENCE_MS then
    return false
  end
  local claimant = redis.call('HGET', K.job .. job, 'claimant')
  if claimant and claimant ~= worker and redis.call('EXISTS', K.alive .. claimant) == 1 then
    return false
  end
  redis.call('HSET', K.job .. job, 'claimant', worker)
  redis.call('HSET', K.worker .. worker, 'claim', job)
  return true
end

-- Take, skip or bury one entry; returns the virtual time that was charged, nil if it was not taken.
local function consider(stream, id, fields, priority, lane_tenant)
  looked = looked + 1
  local found, field, message = read_entry(fields)
  if found and lane_tenant and found.tenant ~= lane_tenant then
    found, field, message = nil, 'tenant', 'the entry lies in the lane of another tenant'
  end
  if not found then
    bury(stream, id, fields, field, message, priority, lane_tenant, endings, now)
    return nil
  end
  local need, charge = cost_of(found, priority .. ':' .. found.tenant)
  local large = pages(found.prompt) + found.n * pages(found.output) > total_pages
  local fits = need <= budget
  if not (fits or may_overflow or large) then
    return nil
  end
  local record = redis.call('HMGET', K.job .. found.job, 'state', 'epoch', 'attempts', 'stream',
    'entry', 'charge', 'weight', 'deadline', 'request', 'queued', 'priority',
    'created')
  if record[1] ~= 'waiting' or record[4] ~= stream or record[5] ~= id then
    bury(stream, id, fields, 'job', 'no waiting job has this entry', priority, lane_tenant,
      endings, now)
    return nil
  end
  if large then
    too_large(found, record, priority)
    return nil
  end
  if tonumber(record[3]) >= SUSPECT_ATTEMPTS and num_held + #jobs > 0 then
    suspect_waits = true
    is_clearing = is_clearing or claims(found.job, id)
    return nil
  end
  if fits then
    budget = budget - need
  else
    may_overflow = false
  end
  return take(found, record, stream, id, priority, lane_tenant ~= nil, need, charge, not fits)
end

local function may_go_on()
  return #jobs < max_jobs and looked < MAX_ENTRIES and not is_clearing and (budget > 0 or may_overflow)
end

local claim = redis.call('HGET', K.worker .. worker, 'claim')
if claim then
  local record = redis.call('HMGET', K.job .. claim, 'state', 'claimant', 'stream', 'entry',
    'priority', 'tenant')
  if record[1] ~= 'waiting' or record[2] ~= worker then
    redis.call('HDEL', K.worker .. worker, 'claim')
  elseif num_held > 0 then
    return { 'clear', {}, {} }
  else
    local entry = redis.call('XRANGE', record[3], record[4], record[4])[1]
    local in_lane = record[3] == K.lane .. record[5] .. ':' .. record[6]
    if entry then
      consider(record[3], entry[1], entry[2], record[5], in_lane and record[6] or nil)
    end
  end
end

for class = 0, last_class do
  local priority, after = tostring(class), '-'
  while may_go_on() do
    local entry = redis.call('XRANGE', K.front .. priority, after, '+', 'COUNT', 1)[1]
    if not entry then
      break
    end
    after = '(' .. entry[1]
    consider(K.front .. priority, entry[1], entry[2], priority, nil)
  end
end

-- One lane as seen by this pull: its entries are read four at a time, and only if it is picked.
local function next_entry(lane)
  if lane.at > #lane.entries then
    lane.entries = redis.call('XRANGE', lane.stream, lane.after, '+', 'COUNT', 4)
    lane.at = 1
  end
  local entry = lane.entries[lane.at]
  if entry then
    lane.at, lane.after = lane.at + 1, '(' .. entry[1]
  end
  return entry
end

local function fairest(lanes)
  local best
  for index, lane in ipairs(lanes) do
    if not best or lane.time < lanes[best].time then
      best = index
    end
  end
  return best
end

for class = 0, last_class do
  local priority, lanes = tostring(class), {}
  if may_go_on() then
    local first = redis.call('ZRANGE', K.backlog .. priority, 0, MAX_TENANTS - 1, 'WITHSCORES')
    for i = 1, #first, 2 do
      lanes[#lanes + 1] = { tenant = first[i], time = tonumber(first[i + 1]), entries = {}, at = 1,
        after = '-', stream = K.lane .. priority .. ':' .. first[i] }
    end
  end
  local touched = #lanes > 0
  while #lanes > 0 and may_go_on() do
    local best = fairest(lanes)
    local lane = lanes[best]
    local entry = next_entry(lane)
    if entry then
      local charged = consider(lane.stream, entry[1], entry[2], priority, lane.tenant)
      lane.time = lane.time + (charged or 0)
    else
      if lane.after == '-' then
        leave_backlog(priority, lane.tenant)
      end
      table.remove(lanes, best)
    end
  end
  if touched then
    raise_floor(priority)
  end
end

local waiting = tonumber(redis.call('HGET', K.load, 'jobs')) or 0
local left = redis.call('EXISTS', K.backlog .. '0', K.backlog .. '1', K.backlog .. '2',
  K.front .. '0', K.front .. '1', K.front .. '2') > 0
if left then
  ring()
end
if tokens_pulled > 0 or left then
  drained(tokens_pulled, now, left)
end
if #jobs > 0 then
  return { 'jobs', jobs, endings }
end
if is_clearing then
  return { 'clear', jobs, endings }
end
return { suspect_waits and 'suspect' or left and waiting > 0 and 'full' or 'empty', jobs, endings }
