#!lua flags=allow-oom
--@args worker serial free_pages:number page_size:number total_pages:number max_jobs:number
--@args may_overflow:flag default_output:number too_large_ms:number last_class:number
--@args affinity_ms:number free_rows:number lists:rest
--@use base: now_ms failure ring
--@use fairness: raise_floor leave_backlog
--@use drain_rate: drained
--@use waiting: stop_waiting
--@use adopt: adopt_waiting
--@use ending: to_ending ending_of
--@use entry: read_entry bury
--@use lanes: fairest_lanes fairest next_entry
--@use affinity: affinity give_up_home is_held_back spares
--@use room: room pages cost_of has_room_for spend_room is_room_left
--@use taking: entries_of note_taken write_taken
--@use stamps: stamped
--@use suspects: crowd in_order is_worth_a_look keeps_off add_to_crowd claims
-- Take as many jobs as fit the budget, fairest first. Bounded: 16 tenants per priority, 64 entries.
room.pages, room.page, room.rows = free_pages, page_size, free_rows
room.default_output = default_output
local MAX_TENANTS, MAX_ENTRIES = 16, 64
-- Jobs of one lane that a pull leaves to other workers before it looks elsewhere, and how many jobs
-- of service others may get ahead of their tenant through that.
local MAX_SPARED, MAX_LEAD = 4, 4

local standing = redis.call('HMGET', K.worker .. worker, 'serial', 'suspect', 'leaving', 'drained',
  'left')
if standing[1] ~= serial then
  return { 'reconcile', {}, {} }
end
redis.call('SADD', K.workers, worker)
local argument = lists
local function read_pairs()
  local map = {}
  for _ = 1, tonumber(ARGV[argument]) do
    map[ARGV[argument + 1]] = tonumber(ARGV[argument + 2])
    argument = argument + 2
  end
  argument = argument + 1
  return map
end
local function read_names()
  local first = argument + 1
  argument = first + tonumber(ARGV[argument])
  return { unpack(ARGV, first, argument - 1) }
end
room.expected, room.cached = read_pairs(), read_pairs()
for _, prefix in ipairs(read_names()) do
  room.idle[prefix] = true
end
affinity.ms, affinity.worker, affinity.held = affinity_ms, worker, room.cached
local lost_prefixes = read_names()
-- What callers tell of the suspects they hold; those of earlier releases hold one, alone.
crowd.told, crowd.num = ARGV[argument] ~= nil, tonumber(ARGV[argument]) or 0
crowd.least, crowd.open = tonumber(ARGV[argument + 1]) or 0, tonumber(ARGV[argument + 2]) or 0
if standing[2] and not crowd.told then
  return { 'suspect', {}, {} }
end
if standing[3] then
  return { 'empty', {}, {} }
end
if redis.call('EXISTS', K.paused) == 1 then
  return { 'paused', {}, {} }
end
for _, prefix in ipairs(lost_prefixes) do
  give_up_home(prefix)
end
local STREAMS = { K.backlog .. '0', K.backlog .. '1', K.backlog .. '2', K.front .. '0', K.front .. '1',
  K.front .. '2', K.suspects }
if standing[4] then
  -- An operator lets it take nothing. It may have had the bell, and does not wait for it after `full`.
  if redis.call('EXISTS', unpack(STREAMS)) > 0 then
    ring()
  end
  return { 'full', {}, {}, 1000 }
end

adopt_waiting()
local now = now_ms()
affinity.now, crowd.now, crowd.worker = now, now, worker
local jobs, endings, looked = {}, {}, 0
local tokens_pulled, prompts_pulled = 0, 0
local suspect_waits, is_clearing = false, false
local spared, unfit = {}, 0
local num_held = redis.call('HLEN', K.held .. worker)
crowd.held = num_held

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
      .. total_pages * room.page .. ' tokens')
  end
end

local function take(found, record, stream, id, priority, in_lane, need, shared, charge, overflow,
  rides)
  local job, tenant = found.job, found.tenant
  local epoch, attempts = tonumber(record[2]) + 1, tonumber(record[3])
  local queued, is_charged = tonumber(record[10]), (tonumber(record[6]) or 0) > 0
  local time = is_charged and 0 or charge / (tonumber(record[7]) or 1)
  if queued then
    tokens_pulled, prompts_pulled = tokens_pulled + queued, prompts_pulled + found.prompt
  end
  local entries = entries_of(stream, priority, in_lane and tenant or nil)
  entries[#entries + 1] = id
  note_taken(job, epoch, priority, tenant, found.prefix, queued, found.prompt,
    not is_charged and charge or nil, time, stamped(record[17], nil, 'p', now, worker))
  add_to_crowd(record[14], attempts)
  if rides then
    max_jobs = 0
  end
  if rides == 'alone' then
    if not crowd.told then
      redis.call('HSET', K.worker .. worker, 'suspect', job)
    end
    redis.call('HDEL', K.worker .. worker, 'claim')
    redis.call('HDEL', K.job .. job, 'claimant')
  end
  local deadline = tonumber(record[8])
  jobs[#jobs + 1] = { job, epoch, attempts, tonumber(priority), tenant, need, overflow and 1 or 0,
    found.logged, deadline and math.max(0, deadline - now) or -1, record[9] or '',
    now - (tonumber(record[12]) or now), found.prefix, shared, found.n, record[14] or '',
    record[15] or '', record[16] or '' }
  return time
end

-- Take, skip or bury one entry; returns the virtual time that was charged, nil if it was not taken,
-- and its virtual time if it was left to another worker. `urge`: nil, `hasty` or `take`.
local function consider(stream, id, fields, priority, lane_tenant, urge)
  looked = looked + 1
  local found, field, message = read_entry(fields)
  if found and lane_tenant and found.tenant ~= lane_tenant then
    found, field, message = nil, 'tenant', 'the entry lies in the lane of another tenant'
  end
  if not found then
    bury(stream, id, fields, field, message, priority, lane_tenant, endings, now)
    return nil
  end
  local need, shared, charge = cost_of(found, priority .. ':' .. found.tenant)
  local large = pages(found.prompt) + found.n * pages(found.output) > total_pages
  local fits = has_room_for(found, need)
  if not (fits or may_overflow or large) then
    unfit = unfit + 1
    return nil
  end
  local record = redis.call('HMGET', K.job .. found.job, 'state', 'epoch', 'attempts', 'stream',
    'entry', 'charge', 'weight', 'deadline', 'request', 'queued', 'priority',
    'created', 'spared', 'evidence', 'listen', 'model', 'stamps')
  if record[1] ~= 'waiting' or record[4] ~= stream or record[5] ~= id then
    bury(stream, id, fields, 'job', 'no waiting job has this entry', priority, lane_tenant,
      endings, now)
    return nil
  end
  if large then
    unfit = unfit + 1
    too_large(found, record, priority)
    return nil
  end
  local waits_for, rides = keeps_off(record[14], record[3], id)
  if waits_for then
    suspect_waits = true
    is_clearing = is_clearing or (waits_for == 'alone' and claims(found.job, id))
    return nil
  end
  if lane_tenant and urge ~= 'take' and not rides
    and spares(found.job, found.prefix, id, tonumber(record[13]), urge == 'hasty', crowd.held) then
    return nil, charge / (tonumber(record[7]) or 1)
  end
  if fits then
    spend_room(found, need)
  else
    may_overflow = false
  end
  return take(found, record, stream, id, priority, lane_tenant ~= nil, need, shared, charge,
    not fits, rides)
end

local function may_go_on()
  return #jobs < max_jobs and looked < MAX_ENTRIES and not is_clearing
    and (is_room_left() or may_overflow)
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
      write_taken(worker)
    end
  end
end

local function consider_suspects(last)
  for _, entry in ipairs(in_order(last)) do
    if not may_go_on() then
      break
    end
    if not is_worth_a_look(entry) then
      suspect_waits = true
    elseif tonumber(entry.priority) <= last_class then
      consider(K.suspects, entry.id, entry.fields, entry.priority, nil)
    end
  end
  write_taken(worker)
end
consider_suspects(false)

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
write_taken(worker)

local function consider_spared(entry, urge)
  consider(entry.stream, entry.id, entry.fields, entry.priority, entry.tenant, urge)
end

local function consider_next(lanes, best, priority)
  local lane = lanes[best]
  local entry = next_entry(lane)
  if not entry then
    if lane.after == '-' then
      leave_backlog(priority, lane.tenant)
    end
    table.remove(lanes, best)
    return
  end
  if is_held_back(entry[1]) then
    table.remove(lanes, best)
    return
  end
  local charged, left_time = consider(lane.stream, entry[1], entry[2], priority, lane.tenant)
  lane.time = lane.time + (charged or 0)
  if left_time then
    spared[#spared + 1] = { stream = lane.stream, id = entry[1], fields = entry[2],
      priority = priority, tenant = lane.tenant, until_time = lane.time + MAX_LEAD * left_time }
    lane.spared = lane.spared + 1
    if lane.spared == MAX_SPARED then
      table.remove(lanes, best)
    end
  end
end

for class = 0, last_class do
  local priority, lanes = tostring(class), {}
  if may_go_on() then
    lanes = fairest_lanes(priority, MAX_TENANTS)
  end
  local touched = #lanes > 0
  while #lanes > 0 and may_go_on() do
    local best = fairest(lanes)
    local lane = lanes[best]
    if spared[1] and lane.time > spared[1].until_time then
      consider_spared(table.remove(spared, 1), 'take')
    else
      consider_next(lanes, best, priority)
    end
  end
  -- Rather than idle, take what was left to others for long enough, in the same order.
  for _, entry in ipairs(spared) do
    if #jobs > 0 or not may_go_on() then
      break
    end
    consider_spared(entry, 'hasty')
  end
  write_taken(worker)
  if touched then
    raise_floor(priority)
  end
  affinity.holds_back = affinity.waits
end

if #jobs == 0 and crowd.left then
  consider_suspects(true)
end
local waiting = tonumber(redis.call('HGET', K.load, 'jobs')) or 0
local left = redis.call('EXISTS', unpack(STREAMS)) > 0
-- What is left to others was announced to them; the bell for everybody would wake this one again.
local only_spared = #spared > 0 and #jobs == 0 and unfit == 0 and not suspect_waits and may_go_on()
if left and not only_spared then
  ring()
end
if tokens_pulled > 0 or left then
  drained(worker, #jobs, tokens_pulled, prompts_pulled, num_held, standing[5], now, left)
end
if affinity.ms > 0 then
  redis.call('HSET', K.worker .. worker, 'room', #jobs < max_jobs and is_room_left() and 1 or 0)
end
local status = left and waiting > 0 and 'full' or 'empty'
if #jobs > 0 then
  status = 'jobs'
elseif is_clearing then
  status = 'clear'
elseif suspect_waits then
  status = 'suspect'
elseif only_spared then
  status = 'spared'
end
return { status, jobs, endings, affinity.retry_ms or 0, left and 1 or 0 }
