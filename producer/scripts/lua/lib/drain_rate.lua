--@offers drained drain_opens drain_rate
-- The rate at which a worker drains the backlog: how many jobs leave it between two of its own pulls
-- that find work waiting, each as long as those that were pulled then; all is forgotten with a time
-- constant of 20 s, in which a calm does not count: a backlog after it is begun at the rate of the one
-- before. What is pulled is no measure of its own: an empty worker takes as much as it has
-- room for, at once and once. Nor is what leaves while nothing waits, which is as much as arrives.
-- What leaves a worker first are the short ones among the jobs it began together: it counts once as
-- many have left as these were, or while none has come so far.
local DRAIN_TAU_MS = 20000

-- `worker` has pulled `jobs` with `tokens`, of which `prompts` are in prompts, beside `held` others.
-- `left` is what its pull before noted, if that left work behind: what it held then, when that was,
-- and how many have to leave it until it counts. `still_waiting` is whether this one does.
local function drained(worker, jobs, tokens, prompts, held, left, now, still_waiting)
  local seen = redis.call('HMGET', K.drain, 'at', 'tokens', 'prompts', 'pulled', 'jobs', 'busy', 'since',
    'turned')
  local since = tonumber(seen[7])
  local before, at, young = string.match(left or '', '^(%d+) (%d+) (%d+)$')
  before, at, young = tonumber(before), tonumber(at), tonumber(young)
  if before and since and at >= since then
    local ended = math.max(0, before - held)
    if young == 0 or not seen[8] then
      local since_last = math.min(now - at, now - (tonumber(seen[1]) or now))
      local decay = math.exp(-math.max(0, since_last) / DRAIN_TAU_MS)
      local function added(number, field)
        return string.format('%.3f', (tonumber(field) or 0) * decay + number)
      end
      redis.call('HSET', K.drain, 'at', now, 'tokens', added(tokens, seen[2]),
        'prompts', added(prompts, seen[3]), 'pulled', added(jobs, seen[4]),
        'jobs', added(ended, seen[5]), 'busy', added(now - at, seen[6]))
    end
    if young == 0 then
      redis.call('HSET', K.drain, 'turned', 1)
    end
    young = math.max(0, young - ended)
  else
    young = held + jobs
  end
  redis.call('HSET', K.drain, 'workers', redis.call('SCARD', K.workers))
  if still_waiting then
    redis.call('HSET', K.drain, 'since', since or now, 'full', held + jobs)
    redis.call('HSET', K.worker .. worker, 'left', string.format('%d %.0f %d', held + jobs, now, young))
  else
    redis.call('HDEL', K.drain, 'since')
  end
end

-- Backlog begins: no pull has left it behind.
local function drain_opens()
  redis.call('HDEL', K.drain, 'since')
end

local function measured_rate()
  local seen = redis.call('HMGET', K.drain, 'tokens', 'pulled', 'jobs', 'busy', 'workers')
  local total, pulled = tonumber(seen[1]) or 0, tonumber(seen[2]) or 0
  local busy = tonumber(seen[4]) or 0
  -- Earlier releases count no jobs.
  local drained_tokens = pulled > 0 and total / pulled * (tonumber(seen[3]) or 0) or total
  if busy < 500 or drained_tokens <= 0 then
    return nil
  end
  local workers = redis.call('SCARD', K.workers)
  return drained_tokens / busy * (workers > 0 and workers or tonumber(seen[5]) or 1)
end

-- In tokens per ms, of all workers there are, or were last; nil until half a second of backlog was
-- seen. Read once a call: nobody pulls meanwhile.
local is_measured, rate = false, nil

local function drain_rate()
  if not is_measured then
    is_measured, rate = true, measured_rate()
  end
  return rate
end
