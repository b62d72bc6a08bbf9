--@offers raise_floor enter_backlog leave_backlog add_time begin_holding end_holding
-- Virtual time of tenants: service in tokens divided by weight. A tenant's time stands in `backlog`
-- while jobs of it wait, in `running` while workers hold some (in both, the same), and in `resting`
-- only while it is ahead of the floor with neither: below the floor it needs no memory, because a
-- tenant that becomes backlogged is raised to the floor.
local function first_score(key)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  return tonumber(first[2])
end

local function floor_of(priority)
  return tonumber(redis.call('HGET', K.floor, priority)) or 0
end

-- Raise the floor to the smallest time of those that want or get service; it never falls. With
-- nobody left it passes everyone, so that an idle pool remembers no debts.
local function raise_floor(priority)
  local floor = floor_of(priority)
  local waiting = first_score(K.backlog .. priority)
  local running = first_score(K.running .. priority)
  local lowest = waiting and running and math.min(waiting, running) or waiting or running
  if not lowest then
    local last = redis.call('ZRANGE', K.resting .. priority, -1, -1, 'WITHSCORES')
    lowest = tonumber(last[2])
  end
  if lowest and lowest > floor then
    redis.call('HSET', K.floor, priority, string.format('%.17g', lowest))
    redis.call('ZREMRANGEBYSCORE', K.resting .. priority, '-inf', lowest)
  end
end

local function rest(priority, tenant, time)
  if time > floor_of(priority) then
    redis.call('ZADD', K.resting .. priority, time, tenant)
  end
end

-- Lanes that are known to stand in `backlog`, so that a call asks once for each.
local backlogged = {}

local function enter_backlog(priority, tenant)
  local lane = priority .. ':' .. tenant
  local was_known = backlogged[lane]
  backlogged[lane] = true
  if was_known or redis.call('ZSCORE', K.backlog .. priority, tenant) then
    return
  end
  local time = redis.call('ZSCORE', K.running .. priority, tenant)
    or redis.call('ZSCORE', K.resting .. priority, tenant)
  time = math.max(tonumber(time) or 0, floor_of(priority))
  redis.call('ZADD', K.backlog .. priority, time, tenant)
  redis.call('ZADD', K.running .. priority, 'XX', time, tenant)
  redis.call('ZREM', K.resting .. priority, tenant)
end

local function leave_backlog(priority, tenant)
  backlogged[priority .. ':' .. tenant] = nil
  local time = redis.call('ZSCORE', K.backlog .. priority, tenant)
  if not time then
    return
  end
  redis.call('ZREM', K.backlog .. priority, tenant)
  if not redis.call('ZSCORE', K.running .. priority, tenant) then
    rest(priority, tenant, tonumber(time))
  end
  raise_floor(priority)
end

local function add_time(priority, tenant, amount)
  if amount == 0 then
    return
  end
  local found = false
  for _, key in ipairs({ K.backlog .. priority, K.running .. priority }) do
    if redis.call('ZSCORE', key, tenant) then
      redis.call('ZINCRBY', key, amount, tenant)
      found = true
    end
  end
  if not found then
    local key = K.resting .. priority
    local time = (tonumber(redis.call('ZSCORE', key, tenant)) or floor_of(priority)) + amount
    redis.call('ZREM', key, tenant)
    rest(priority, tenant, time)
  end
end

local function begin_holding(priority, tenant, num_jobs)
  if redis.call('HINCRBY', K.holding .. priority, tenant, num_jobs) == num_jobs then
    local time = redis.call('ZSCORE', K.backlog .. priority, tenant)
      or redis.call('ZSCORE', K.resting .. priority, tenant)
    redis.call('ZADD', K.running .. priority, math.max(tonumber(time) or 0, floor_of(priority)),
      tenant)
    redis.call('ZREM', K.resting .. priority, tenant)
  end
end

local function end_holding(priority, tenant, num_jobs)
  if redis.call('HINCRBY', K.holding .. priority, tenant, -num_jobs) > 0 then
    return
  end
  redis.call('HDEL', K.holding .. priority, tenant)
  local time = redis.call('ZSCORE', K.running .. priority, tenant)
  redis.call('ZREM', K.running .. priority, tenant)
  if time and not redis.call('ZSCORE', K.backlog .. priority, tenant) then
    rest(priority, tenant, tonumber(time))
  end
  raise_floor(priority)
end
