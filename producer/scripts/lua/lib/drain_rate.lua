--@offers drained drain_opens drain_rate
-- The rate at which the backlog drains, in tokens per ms: how many jobs left their workers in the time
-- in which work waited, each as long as those that were pulled meanwhile; all is forgotten with a time
-- constant of 20 s. What is pulled is no measure of its own: an empty worker takes as much as it has
-- room for, at once and once. Nor is what leaves while nothing waits, which is as much as arrives.
-- The rate is kept for one worker, so that it holds at once where one comes or goes: the time counts
-- once for each that there is.
local DRAIN_TAU_MS = 20000

-- `worker` has pulled `jobs` with `tokens`, beside `held` others; `held_then` is what it held after its
-- pull before, if that left work behind. `still_waiting` is whether this one does.
local function drained(worker, jobs, tokens, held, held_then, now, still_waiting)
  local seen = redis.call('HMGET', K.drain, 'at', 'tokens', 'pulled', 'jobs', 'busy', 'open')
  local total, pulled = tonumber(seen[2]) or 0, tonumber(seen[3]) or 0
  local ended, busy = tonumber(seen[4]) or 0, tonumber(seen[5]) or 0
  local workers = redis.call('SCARD', K.workers)
  if seen[6] == '1' then
    local decay = math.exp(-math.max(0, now - (tonumber(seen[1]) or now)) / DRAIN_TAU_MS)
    total, pulled = total * decay + tokens, pulled * decay + jobs
    ended = ended * decay + math.max(0, (tonumber(held_then) or held) - held)
    busy = busy * decay + workers * DRAIN_TAU_MS * (1 - decay)
  end
  redis.call('HSET', K.drain, 'at', now, 'tokens', string.format('%.3f', total),
    'pulled', string.format('%.3f', pulled), 'jobs', string.format('%.3f', ended),
    'busy', string.format('%.3f', busy), 'workers', workers, 'open', still_waiting and 1 or 0)
  if still_waiting then
    redis.call('HSET', K.worker .. worker, 'held_then', held + jobs)
  elseif held_then then
    redis.call('HDEL', K.worker .. worker, 'held_then')
  end
end

-- Backlog begins: no pull has left it behind.
local function drain_opens(now)
  redis.call('HSET', K.drain, 'at', now, 'open', 0)
end

-- nil until half a second of backlog was seen; where there is no worker, of those there were last.
local function drain_rate()
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
