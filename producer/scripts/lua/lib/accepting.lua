--@offers accept write_load
--@use base: now_ms
--@use naming: inherited
--@use raw: raw_place
--@use drain_rate: drain_rate drain_opens
--@use waiting: add_entry
--@use later: add_later
-- The job that is being accepted, one at a time; numbers may come as text.
local job, tenant, priority, weight, prompt, output, n, request, digest, idem, deadline_ms, delay_ms
local prefix, tenant_tokens, pool_tokens, ticket_ms, refuse_late, entry, callback, version, listen, model
local cost, inbox, raw, now

-- What waits, read once per call and written once: jobs and tokens, by priority and tenant.
local load, written = nil, {}

local function read_load()
  local own = 'tenant:' .. tenant
  if not load then
    local names = { 'jobs:0', 'tokens:0', 'jobs:1', 'tokens:1', 'jobs:2', 'tokens:2', 'jobs', 'tokens',
      'prompts', own }
    load = {}
    for i, value in ipairs(redis.call('HMGET', K.load, unpack(names))) do
      load[names[i]] = tonumber(value) or 0
    end
  elseif not load[own] then
    load[own] = tonumber(redis.call('HGET', K.load, own)) or 0
  end
end

local function add_to_load(name, amount)
  load[name] = load[name] + amount
  written[name] = true
end

-- Write what was accepted, whatever became of the last job.
local function write_load()
  local fields = {}
  for name in pairs(written) do
    fields[#fields + 1], fields[#fields + 2] = name, load[name]
  end
  if #fields > 0 then
    redis.call('HSET', K.load, unpack(fields))
  end
end

-- Where an accepted or known job stands: what waits at its priority or above.
local function place(status, id, state)
  read_load()
  local jobs, tokens = 0, 0
  for class = 0, tonumber(priority) do
    jobs, tokens = jobs + load['jobs:' .. class], tokens + load['tokens:' .. class]
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
    redis.call('XDEL', inbox, raw)
  end
  return (place('exists', id, record[1]))
end

-- Refused submits get a time to come back, one after the other at the measured rate. Who comes at
-- its time with its ticket may fill the queue to the brim; new arrivals stop at nine tenths while
-- somebody is in line, else they would take every place that frees up.
local function over_bound(status, queued, field, bound)
  if queued == 0 or queued + cost <= bound * 0.9 then
    return nil
  end
  local due = tonumber(redis.call('HGET', K.line, field)) or 0
  local fits = queued + cost <= bound
  local in_time = ticket_ms > 0 and now >= ticket_ms
  if fits and (in_time or due <= now) then
    return nil
  end
  local rate = drain_rate() or cost / 1000
  local wait, ticket
  if ticket_ms > 0 then
    wait, ticket = math.max(ticket_ms - now, (queued + cost - bound) / rate), ticket_ms
  else
    local start = math.max(due, now + math.max(0, queued + cost - bound * 0.9) / rate)
    redis.call('HSET', K.line, field, string.format('%.0f', start + cost / rate))
    wait = start + cost / rate - now
    ticket = now + wait
  end
  wait = math.min(math.max(math.ceil(wait), 50), 3600000)
  return { status, queued, bound, wait, math.ceil(ticket), 0 }
end

-- Accept a job, or say why not.
local function accept(...)
  job, tenant, priority, weight, prompt, output, n, request, digest, idem, deadline_ms, delay_ms, prefix,
    tenant_tokens, pool_tokens, ticket_ms, refuse_late, entry, callback, version, listen, model = ...
  deadline_ms, delay_ms, ticket_ms = tonumber(deadline_ms), tonumber(delay_ms), tonumber(ticket_ms)
  tenant_tokens, pool_tokens = tonumber(tenant_tokens), tonumber(pool_tokens)
  cost = prompt + n * output
  inbox, raw = raw_place(entry)
  if entry ~= '' and #redis.call('XRANGE', inbox, raw, raw) == 0 then
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
  -- The same id of the same tenant, accepted by version 1 and not forgotten.
  local earlier = inherited(job, tenant)
  if earlier then
    return known(earlier)
  end

  now = now or now_ms()
  read_load()
  local own = 'tenant:' .. tenant
  local refused = over_bound('full_tenant', load[own], own, tenant_tokens)
    or over_bound('full_pool', load.tokens, 'pool', pool_tokens)
  if refused then
    return refused
  end
  local reply, eta = place('accepted', job, delay_ms > 0 and 'delayed' or 'waiting')
  if tonumber(refuse_late) == 1 and deadline_ms >= 0 and math.max(eta, 0) + delay_ms > deadline_ms then
    return { 'late', 0, 0, 0, 0, eta }
  end

  local state, stream, at = 'delayed', '', ''
  if delay_ms > 0 then
    redis.call('ZADD', K.due, now + delay_ms, 'n:' .. job)
    add_later(now + delay_ms, cost, prompt, now)
  else
    state = 'waiting'
    stream, at = add_entry(job, tenant, priority, false,
      { prompt = prompt, output = output, n = n, logged = 0, prefix = prefix })
  end
  -- Earlier releases say neither where the submitter listens nor which model it asks for.
  local more = (listen or '') ~= '' and { 'listen', listen } or {}
  if (model or '') ~= '' then
    more[#more + 1], more[#more + 2] = 'model', model
  end
  redis.call('HSET', K.job .. job, 'state', state, 'epoch', 0, 'owner', '', 'attempts', 0,
    'tenant', tenant, 'priority', priority, 'weight', weight, 'prompt', prompt, 'output', output, 'n', n,
    'logged', 0, 'charge', 0, 'request', request, 'digest', digest, 'idem', idem, 'prefix', prefix,
    'created', now, 'queued', cost, 'stream', stream, 'entry', at, 'v', version, unpack(more))
  if load.tokens == 0 then
    drain_opens()
  end
  add_to_load('tokens', cost)
  -- Earlier releases count no prompts, so these begin anew whenever nothing waits.
  add_to_load('prompts', load.jobs > 0 and prompt or prompt - load.prompts)
  add_to_load('jobs', 1)
  add_to_load('tokens:' .. priority, cost)
  add_to_load('jobs:' .. priority, 1)
  add_to_load(own, cost)
  if idem ~= '' then
    redis.call('SET', K.idem .. idem, job)
  end
  if callback ~= '' then
    redis.call('HSET', K.job .. job, 'callback', callback)
  end
  if deadline_ms >= 0 then
    redis.call('HSET', K.job .. job, 'deadline', now + deadline_ms)
    redis.call('ZADD', K.due, now + deadline_ms, 'd:' .. job)
  end
  if entry ~= '' then
    redis.call('XDEL', inbox, raw)
  end
  return reply
end
