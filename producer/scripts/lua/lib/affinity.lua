--@offers affinity take_home give_up_home is_held_back spares
--@use base: wake
-- Where a prefix is at home: with the first worker that pulled a job of it, until that one's cache
-- has lost it, or the worker leaves or dies. Other workers leave jobs of the prefix to it for a while: for
-- `ms` if they would idle, and as long as they find other work for a fifth of what the job has
-- waited already. But not to a home that has many more jobs than they have: to compute the prefix
-- once more costs less than a crowd around it, and from then on both hold it. The key's TTL is
-- renewed by every job that the home takes.
local HOME_MS, MAX_PREFIX_BYTES, SPARED_SHARE, MANY_JOBS = 600000, 128, 0.2, 16
local affinity = { ms = 0, worker = '', held = {}, now = 0, retry_ms = nil, waits = false,
  holds_back = false }
local seen, homes = {}, {}

local function is_prefix(prefix)
  return affinity.ms > 0 and prefix ~= '' and #prefix <= MAX_PREFIX_BYTES
end

-- The worker other than this one that a prefix is at home with, if it lives and goes on pulling.
local function home_elsewhere(prefix)
  if homes[prefix] == nil then
    homes[prefix] = redis.call('GET', K.home .. prefix)
  end
  local home = homes[prefix]
  if not home or home == affinity.worker then
    return nil
  end
  if seen[home] == nil then
    local standing = redis.call('HMGET', K.worker .. home, 'room', 'leaving', 'drained')
    seen[home] = not standing[2] and not standing[3] and redis.call('EXISTS', K.alive .. home) == 1
      and { room = standing[1] == '1', num_jobs = redis.call('HLEN', K.held .. home) }
  end
  return seen[home] and home or nil
end

local function take_home(prefix)
  if is_prefix(prefix) and not home_elsewhere(prefix) then
    redis.call('SET', K.home .. prefix, affinity.worker, 'PX', HOME_MS)
  end
end

local function give_up_home(prefix)
  if redis.call('GET', K.home .. prefix) == affinity.worker then
    redis.call('DEL', K.home .. prefix)
  end
end

local function retry_within(ms)
  affinity.retry_ms = math.max(math.min(affinity.retry_ms or affinity.ms, ms), 1)
end

local function entered_at(entry)
  return tonumber(string.match(entry, '^%d+'))
end

-- Whether a job of a lower class stays behind what is left to a full worker, which keeps its
-- priority: for the time that such a job may be left, and no longer, however many of them come.
local function is_held_back(entry)
  local left_ms = affinity.ms - (affinity.now - (entered_at(entry) or 0))
  if not affinity.holds_back or left_ms <= 0 then
    return false
  end
  retry_within(left_ms)
  return true
end

-- Whether to leave a job to the home of its prefix. The time counts from the first pull that did,
-- `since`; `hasty` is a pull that has found nothing else to do; this worker holds `num_jobs`.
local function spares(job, prefix, entry, since, hasty, num_jobs)
  if not is_prefix(prefix) or affinity.held[prefix] then
    return false
  end
  local home = home_elsewhere(prefix)
  if not home or seen[home].num_jobs > num_jobs + MANY_JOBS then
    return false
  end
  if not since then
    since = affinity.now
    redis.call('HSET', K.job .. job, 'spared', since)
  end
  local waited = since - (entered_at(entry) or since)
  local left_ms = affinity.ms - (affinity.now - since)
  local patience_ms = hasty and 0 or math.max(waited * SPARED_SHARE - affinity.ms, 0)
  if left_ms + patience_ms <= 0 then
    return false
  end
  if not seen[home].room then
    affinity.waits = true
  elseif not seen[home].woken then
    seen[home].woken = true
    wake(home)
  end
  retry_within(left_ms)
  return true
end
