--@offers adopt_waiting adopt_due adopt_endings
-- What version 1 left under its own names is moved to where this release looks. Bounded per call;
-- entries are moved as they are, and judged by the pull that takes them.
local MAX_ADOPTED = 64
-- An entry has half as many; one with thousands would not fit on the stack.
local MAX_FIELDS = 64

local function adopt_entries(from, to, limit)
  local entries = redis.call('XRANGE', from, '-', '+', 'COUNT', limit)
  for _, entry in ipairs(entries) do
    local job
    local id = redis.call('XADD', to, '*', unpack(entry[2], 1, math.min(#entry[2], MAX_FIELDS)))
    for i = 1, #entry[2], 2 do
      if entry[2][i] == 'job' then
        job = entry[2][i + 1]
      end
    end
    local record = job and redis.call('HMGET', K.job .. job, 'stream', 'entry')
    if record and record[1] == from and record[2] == entry[1] then
      redis.call('HSET', K.job .. job, 'stream', to, 'entry', id)
    end
    redis.call('XDEL', from, entry[1])
  end
  if #entries < limit or redis.call('XLEN', from) == 0 then
    redis.call('DEL', from)
  end
  return #entries
end

local function adopt_lane(priority, tenant, time, limit)
  local from = K.lane1 .. priority .. ':' .. tenant
  local count = adopt_entries(from, K.lane .. priority .. ':' .. tenant, limit)
  if count > 0 then
    redis.call('ZADD', K.backlog .. priority, 'NX', time, tenant)
  end
  if redis.call('EXISTS', from) == 0 then
    redis.call('ZREM', K.backlog1 .. priority, tenant)
  end
  return count
end

local function adopt_waiting()
  if redis.call('EXISTS', K.front1 .. '0', K.front1 .. '1', K.front1 .. '2', K.backlog1 .. '0',
    K.backlog1 .. '1', K.backlog1 .. '2') == 0 then
    return
  end
  local left = MAX_ADOPTED
  for class = 0, 2 do
    local priority = tostring(class)
    if left > 0 then
      left = left - adopt_entries(K.front1 .. priority, K.front .. priority, left)
    end
    local first = redis.call('ZRANGE', K.backlog1 .. priority, 0, 15, 'WITHSCORES')
    for i = 1, #first, 2 do
      if left > 0 then
        left = left - adopt_lane(priority, first[i], first[i + 1], left)
      end
    end
  end
end

local function adopt_scores(from, to, highest)
  local found = redis.call('ZRANGEBYSCORE', from, '-inf', highest, 'WITHSCORES', 'LIMIT', 0,
    MAX_ADOPTED)
  for i = 1, #found, 2 do
    redis.call('ZADD', to, found[i + 1], found[i])
    redis.call('ZREM', from, found[i])
  end
end

local function adopt_due()
  adopt_scores(K.due1, K.due, '+inf')
end

-- Only what its own release has let lie.
local function adopt_endings(before)
  adopt_scores(K.ending1, K.ending, before)
end
