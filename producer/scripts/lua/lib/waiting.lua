--@offers add_load add_entry wait_in load_job drop_entries drop_entry stop_waiting
--@use base: ring is_woken wake
--@use fairness: enter_backlog leave_backlog
--@use later: forget_later
-- Jobs that wait: their entry in a lane or front list, and the load they add to the queue's bounds.
-- `queued` of a record is what its job adds; empty once it adds nothing.
-- Earlier releases count no prompts, so these begin anew whenever nothing waits.
local function add_load(tenant, priority, tokens, prompts, jobs)
  local total = redis.call('HINCRBY', K.load, 'tokens', tokens)
  if redis.call('HINCRBY', K.load, 'jobs', jobs) > 0 then
    redis.call('HINCRBY', K.load, 'prompts', prompts)
  else
    redis.call('HSET', K.load, 'prompts', 0)
  end
  redis.call('HINCRBY', K.load, 'tokens:' .. priority, tokens)
  redis.call('HINCRBY', K.load, 'jobs:' .. priority, jobs)
  if redis.call('HINCRBY', K.load, 'tenant:' .. tenant, tokens) <= 0 then
    redis.call('HDEL', K.load, 'tenant:' .. tenant)
    redis.call('HDEL', K.line, 'tenant:' .. tenant)
  end
  return total
end

-- Tell the worker whose cache holds a prefix, if it has room: to the others the bell means nothing
-- then, because they leave the job to that one.
local function wake_home(prefix)
  local home = redis.call('GET', K.home .. prefix)
  if home and not is_woken(home) and redis.call('HGET', K.worker .. home, 'room') == '1'
    and redis.call('EXISTS', K.alive .. home) == 1 then
    wake(home)
  end
end

-- Append a job's entry to its lane or, with `front`, to the list that every pull empties first, or
-- with `ride` to the suspects, of whom a pull takes only as many as may be together; and tell who may
-- care. Returns the stream and the entry's id. The record has to name both.
local function add_entry(job, tenant, priority, front, cost, ride, tried)
  local stream = front and K.front .. priority or K.lane .. priority .. ':' .. tenant
  local fields = { 'v', 2, 'job', job, 'tenant', tenant, 'prompt', cost.prompt, 'output',
    cost.output, 'n', cost.n, 'logged', cost.logged, 'prefix', cost.prefix }
  if ride then
    stream, front = K.suspects, true
    for _, each in ipairs({ 'priority', priority, 'ride', ride, 'tried', tried }) do
      fields[#fields + 1] = each
    end
  end
  local entry = redis.call('XADD', stream, '*', unpack(fields))
  if not front then
    enter_backlog(priority, tenant)
    if cost.prefix ~= '' then
      wake_home(cost.prefix)
    end
  end
  ring()
  return stream, entry
end

-- Let a job wait whose record holds its costs; its load counts from here on until `unload`.
local function wait_in(job, tenant, priority, front)
  local record = redis.call('HMGET', K.job .. job, 'prompt', 'output', 'n', 'logged', 'prefix',
    'evidence')
  local ride, tried = string.match(record[6] or '', '^([1-9]%d*) .* (%d)$')
  local stream, entry = add_entry(job, tenant, priority, front, { prompt = record[1],
    output = record[2], n = record[3], logged = record[4] or 0, prefix = record[5] or '' }, ride,
    tried)
  redis.call('HSET', K.job .. job, 'state', 'waiting', 'stream', stream, 'entry', entry,
    'owner', '')
end

local function load_job(job, tenant, priority, prompt, output)
  redis.call('HSET', K.job .. job, 'queued', prompt + output)
  return add_load(tenant, priority, prompt + output, prompt, 1)
end

local function unload(job, tenant, priority)
  local record = redis.call('HMGET', K.job .. job, 'queued', 'prompt')
  local queued, prompt = record[1], tonumber(record[2]) or 0
  if queued and queued ~= '' then
    redis.call('HSET', K.job .. job, 'queued', '')
    add_load(tenant, priority, -queued, -prompt, -1)
    local due = redis.call('ZSCORE', K.due, 'n:' .. job)
    if due then
      forget_later(due, queued, prompt)
    end
  end
end

-- Delete entries; an emptied stream goes with them, and an emptied lane leaves the backlog.
local function drop_entries(stream, entries, lane_priority, lane_tenant)
  redis.call('XDEL', stream, unpack(entries))
  if redis.call('XLEN', stream) == 0 then
    redis.call('DEL', stream)
    if lane_tenant then
      leave_backlog(lane_priority, lane_tenant)
    end
  end
end

local function drop_entry(stream, entry, lane_priority, lane_tenant)
  drop_entries(stream, { entry }, lane_priority, lane_tenant)
end

-- Take a waiting or delayed job out of wherever it waits.
local function stop_waiting(job, tenant, priority)
  local place = redis.call('HMGET', K.job .. job, 'stream', 'entry')
  if place[1] and place[1] ~= '' then
    local in_lane = place[1] == K.lane .. priority .. ':' .. tenant
    drop_entry(place[1], place[2], priority, in_lane and tenant or nil)
    redis.call('HSET', K.job .. job, 'stream', '', 'entry', '')
  end
  unload(job, tenant, priority)
end
