#!lua
--@use base fairness drain_rate waiting ending
-- Accept a job, or say why not. No allow-oom: this is the script to refuse when memory is full.
local A = ARGV
local job, tenant, priority = A[1], A[2], A[3]
local prompt, output, n = tonumber(A[5]), tonumber(A[6]), tonumber(A[7])
local digest, idem, entry = A[9], A[10], A[18]
local cost = prompt + n * output

-- What waits, by priority and then of this tenant: jobs and tokens.
local function read_load()
  local read = redis.call('HMGET', K.load, 'jobs:0', 'tokens:0', 'jobs:1', 'tokens:1', 'jobs:2',
    'tokens:2', 'jobs', 'tokens', 'tenant:' .. tenant)
  local load = {}
  for i = 1, 9 do
    load[i] = tonumber(read[i]) or 0
  end
  return load
end
local JOBS, TOKENS, OF_TENANT = 7, 8, 9

-- Where an accepted or known job stands: what waits at its priority or above.
local function place(status, id, state, load)
  local jobs, tokens = 0, 0
  for class = 0, tonumber(priority) do
    jobs, tokens = jobs + load[class * 2 + 1], tokens + load[class * 2 + 2]
  end
  local rate = tokens > 0 and drain_rate()
  local eta = tokens == 0 and 0 or rate and math.ceil(tokens / rate) or -1
  return { status, id, state, jobs, tokens, eta }, eta
end

local function known(id)
  local record = redis.call('HMGET', K.job .. id, 'state', 'digest')
  if not record[1] then
    return nil
  end
  if record[2] ~= digest then
    return { 'conflict', 0, 0, 0, 0, 0 }
  end
  if entry ~= '' then
    redis.call('XDEL', K.inbox, entry)
  end
  return (place('exists', id, record[1], read_load()))
end

-- Refused submits get a time to come back, one after the other at the measured rate. Who comes at
-- its time with its ticket may fill the queue to the brim; new arrivals stop at nine tenths while
-- somebody is in line, else they would take every place that frees up.
local function over_bound(status, queued, field, bound, now)
  local ticket = tonumber(A[16])
  if queued == 0 or queued + cost <= bound * 0.9 then
    return nil
  end
  local due = tonumber(redis.call('HGET', K.line, field)) or 0
  local fits = queued + cost <= bound
  local in_time = ticket > 0 and now >= ticket
  if fits and (in_time or due <= now) then
    return nil
  end
  local rate = drain_rate() or cost / 1000
  local wait
  if ticket > 0 then
    wait = math.max(ticket - now, (queued + cost - bound) / rate)
  else
    local start = math.max(due, now + math.max(0, queued + cost - bound * 0.9) / rate)
    redis.call('HSET', K.line, field, string.format('%.0f', start + cost / rate))
    wait = start + cost / rate - now
    ticket = now + wait
  end
  wait = math.min(math.max(math.ceil(wait), 50), 3600000)
  return { status, queued, bound, wait, math.ceil(ticket), 0 }
end

if entry ~= '' and #redis.call('XRANGE', K.inbox, entry, entry) == 0 then
  return { 'gone', 0, 0, 0, 0, 0 }
end
if idem ~= '' then
  local earlier = redis.call('GET', K.idem .. idem)
  if earlier then
    local found = known(earlier)
    if found then
      return found
    end
  end
end
local found = known(job)
if found then
  return found
end

local now, load = now_ms(), read_load()
local refused = over_bound('full_tenant', load[OF_TENANT], 'tenant:' .. tenant, tonumber(A[14]), now)
  or over_bound('full_pool', load[TOKENS], 'pool', tonumber(A[15]), now)
if refused then
  return refused
end
local deadline, delay = tonumber(A[11]), tonumber(A[12])
local reply, eta = place('accepted', job, delay > 0 and 'delayed' or 'waiting', load)
if A[17] == '1' and deadline >= 0 and math.max(eta, 0) + delay > deadline then
  return { 'late', 0, 0, 0, 0, eta }
end

local state, stream, at = 'delayed', '', ''
if delay > 0 then
  redis.call('ZADD', K.due, now + delay, 'n:' .. job)
else
  state = 'waiting'
  stream, at = add_entry(job, tenant, priority, false,
    { prompt = A[5], output = A[6], n = A[7], logged = 0, prefix = A[13] })
end
redis.call('HSET', K.job .. job, 'state', state, 'epoch', 0, 'owner', '', 'attempts', 0,
  'tenant', tenant, 'priority', priority, 'weight', A[4], 'prompt', A[5], 'output', A[6], 'n', A[7],
  'logged', 0, 'charge', 0, 'request', A[8], 'digest', digest, 'idem', idem, 'prefix', A[13],
  'created', now, 'queued', cost, 'stream', stream, 'entry', at)
redis.call('HSET', K.load, 'tokens', load[TOKENS] + cost, 'jobs', load[JOBS] + 1,
  'tokens:' .. priority, load[priority * 2 + 2] + cost,
  'jobs:' .. priority, load[priority * 2 + 1] + 1, 'tenant:' .. tenant, load[OF_TENANT] + cost)
if load[TOKENS] == 0 then
  drain_opens(now)
end
if idem ~= '' then
  redis.call('SET', K.idem .. idem, job)
end
if A[19] ~= '' then
  redis.call('HSET', K.job .. job, 'callback', A[19])
end
if deadline >= 0 then
  redis.call('HSET', K.job .. job, 'deadline', now + deadline)
  redis.call('ZADD', K.due, now + deadline, 'd:' .. job)
end
if entry ~= '' then
  redis.call('XDEL', K.inbox, entry)
end
return reply
