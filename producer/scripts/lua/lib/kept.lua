--@offers note_kept touch_kept make_room fresh_ms
-- What finished jobs keep, in bytes by tenant, oldest first, so that the past never fills the memory
-- that new jobs need. Past a bound the oldest result goes; its record stays and tells so, and those
-- records may take a quarter of the pool's bound: then the oldest of them goes too.
--
-- An entry of a tenant's list is `<when> <bytes> <job>`. `kept` has the sums, and the bounds as the
-- worker has them that completed last; `kept_first` has the time of each list's first entry.
local DEFAULT_POOL, DEFAULT_TENANT = 268435456, 67108864
-- Beside the result: record, names, times of expiry and the entry here. A record alone takes less.
local OVERHEAD, RECORD = 512, 384
-- Of one call: two a job that is completed are enough to keep up, more are for large results.
local MAX_DROPPED = 128
local lists, tenants, stamp = {}, {}, nil

-- Look at a tenant's bound in this call.
local function touch_kept(tenant)
  local list = lists[tenant]
  if not list then
    list = { bytes = 0 }
    lists[tenant] = list
    tenants[#tenants + 1] = tenant
  end
  return list
end

local function note_kept(job, tenant, result_bytes, now)
  local list, bytes = touch_kept(tenant), result_bytes + OVERHEAD
  stamp = stamp or string.format('%.0f ', now)
  list[#list + 1] = stamp .. bytes .. ' ' .. job
  list.bytes = list.bytes + bytes
end

local function outlive(key, ttl_ms)
  if redis.call('PTTL', key) < ttl_ms then
    redis.call('PEXPIRE', key, ttl_ms)
  end
end

-- Write down what was noted. Returns the bytes of all lists.
local function add_noted(total, now, ttl_ms)
  for _, tenant in ipairs(tenants) do
    local list, key = lists[tenant], K.kept_of .. tenant
    if #list > 0 then
      if redis.call('RPUSH', key, unpack(list)) == #list then
        redis.call('ZADD', K.kept_first, now, tenant)
      end
      outlive(key, ttl_ms)
      redis.call('HINCRBY', K.kept, 'of:' .. tenant, list.bytes)
      total = total + list.bytes
    end
  end
  return total
end

-- Take the oldest entry off a tenant's list. Returns its job (nil where the list has expired), when
-- that ended, the bytes that are counted no more, and those that still are for this tenant.
local function take_oldest(tenant)
  local key = K.kept_of .. tenant
  local ended, bytes, job = string.match(redis.call('LPOP', key) or '', '^(%d+) (%d+) (.+)$')
  local first = string.match(redis.call('LINDEX', key, 0) or '', '^%d+')
  bytes = tonumber(bytes) or 0
  -- A minus before 0 would be -0, which is no integer to Redis.
  local left = redis.call('HINCRBY', K.kept, 'of:' .. tenant, 0 - bytes)
  if first then
    redis.call('ZADD', K.kept_first, first, tenant)
  else
    redis.call('ZREM', K.kept_first, tenant)
    redis.call('HDEL', K.kept, 'of:' .. tenant)
    bytes, left = bytes + left, 0
  end
  return job, tonumber(ended), bytes, left
end

-- For so long after its end a job's name may still meet calls of before: 30 s where records are kept for
-- an hour, else in proportion.
local function fresh_ms(ttl_ms)
  return math.floor(math.min(30000, ttl_ms / 120))
end

-- Forget jobs whose results were dropped, oldest first, while there are more than may be; a name that
-- is another job's by now is left alone.
local function forget_dropped(most, now, ttl_ms)
  for _ = 1, 2 do
    local job = redis.call('LINDEX', K.dropped, 0)
    local record = job and redis.call('HMGET', K.job .. job, 'state', 'dropped', 'idem')
    local is_dropped = record and record[1] == 'done' and record[2]
    if not job or is_dropped and (redis.call('LLEN', K.dropped) <= most
      or tonumber(record[2]) + fresh_ms(ttl_ms) > now) then
      return
    end
    redis.call('LPOP', K.dropped)
    if is_dropped then
      redis.call('DEL', K.job .. job)
      if record[3] and record[3] ~= '' then
        redis.call('DEL', K.idem .. record[3])
      end
    end
  end
end

local function note_dropped(job, bound, now, ttl_ms)
  redis.call('HSET', K.job .. job, 'dropped', string.format('%.0f', now))
  redis.call('RPUSH', K.dropped, job)
  outlive(K.dropped, ttl_ms)
  forget_dropped(bound > 0 and bound / 4 / RECORD or math.huge, now, ttl_ms)
end

-- Write down what was noted and drop the oldest past the bounds; a bound of 0 is none, '' leaves bounds
-- and the time for which records are kept as they are. The newest of a tenant, and of the pool, is
-- never dropped. Returns the jobs whose results are to go, each with the time of its end, and whether
-- there are more.
local function make_room(now, ttl_ms, pool_bytes, tenant_bytes)
  local known = redis.call('HMGET', K.kept, 'bytes', 'pool', 'tenant', 'ttl')
  local pool = tonumber(pool_bytes) or tonumber(known[2]) or DEFAULT_POOL
  local own = tonumber(tenant_bytes) or tonumber(known[3]) or DEFAULT_TENANT
  if pool_bytes == '' then
    ttl_ms = tonumber(known[4]) or ttl_ms
  end
  local total = add_noted(tonumber(known[1]) or 0, now, ttl_ms)
  local room, dropped = MAX_DROPPED, {}

  local function drop_oldest(tenant)
    local job, ended, bytes, left = take_oldest(tenant)
    total, room = total - bytes, room - 1
    if job and ended + ttl_ms > now and redis.call('HGET', K.job .. job, 'state') == 'done' then
      note_dropped(job, pool, now, ttl_ms)
      dropped[#dropped + 1] = { job, ended }
    end
    return left
  end

  local function is_pool_full()
    return pool > 0 and total + redis.call('LLEN', K.dropped) * RECORD > pool
  end

  for _, tenant in ipairs(tenants) do
    local bytes = own > 0 and tonumber(redis.call('HGET', K.kept, 'of:' .. tenant)) or 0
    while room > 0 and bytes > own and redis.call('LLEN', K.kept_of .. tenant) > 1 do
      bytes = drop_oldest(tenant)
    end
  end
  while room > 0 do
    local first = redis.call('ZRANGE', K.kept_first, 0, 1, 'WITHSCORES')
    local has_expired = first[2] and first[2] + ttl_ms <= now
    if not first[1] or not has_expired and not is_pool_full()
      or not has_expired and not first[3] and redis.call('LLEN', K.kept_of .. first[1]) < 2 then
      break
    end
    drop_oldest(first[1])
  end
  if #tenants > 0 or room < MAX_DROPPED then
    redis.call('HSET', K.kept, 'bytes', string.format('%.0f', total), 'pool', pool, 'tenant', own,
      'ttl', ttl_ms)
    outlive(K.kept, ttl_ms)
    outlive(K.kept_first, ttl_ms)
  end
  return dropped, room == 0 and 1 or 0
end
