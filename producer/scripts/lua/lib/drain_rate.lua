--@offers drained drain_opens drain_rate
-- The rate at which the backlog drains, in tokens per ms: tokens pulled over the time in which work
-- waited, both forgotten with a time constant of 20 s. Only what is pulled from a backlog that an
-- earlier pull has left behind counts, over the time since that pull: where a pull takes all there
-- is, it tells how fast jobs arrive, not how fast they could be done. It is kept for one worker, so
-- that it holds at once where one comes or goes: the time counts once for each that there is.
local DRAIN_TAU_MS = 20000

-- `jobs` and `tokens` were pulled; `still_waiting` is whether this pull leaves work behind.
local function drained(jobs, tokens, now, still_waiting)
  local seen = redis.call('HMGET', K.drain, 'at', 'tokens', 'jobs', 'busy', 'open')
  local total, pulled = tonumber(seen[2]) or 0, tonumber(seen[3]) or 0
  local busy, workers = tonumber(seen[4]) or 0, redis.call('SCARD', K.workers)
  if seen[5] == '1' then
    local decay = math.exp(-math.max(0, now - (tonumber(seen[1]) or now)) / DRAIN_TAU_MS)
    total, pulled = total * decay + tokens, pulled * decay + jobs
    busy = busy * decay + workers * DRAIN_TAU_MS * (1 - decay)
  end
  redis.call('HSET', K.drain, 'at', now, 'tokens', string.format('%.3f', total),
    'jobs', string.format('%.3f', pulled), 'busy', string.format('%.3f', busy),
    'workers', workers, 'open', still_waiting and 1 or 0)
end

-- Backlog begins: no pull has left it behind.
local function drain_opens(now)
  redis.call('HSET', K.drain, 'at', now, 'open', 0)
end

-- nil until half a second of backlog was seen; where there is no worker, of those there were last.
local function drain_rate()
  local seen = redis.call('HMGET', K.drain, 'tokens', 'busy', 'workers')
  local total, busy = tonumber(seen[1]) or 0, tonumber(seen[2]) or 0
  if busy < 500 or total <= 0 then
    return nil
  end
  local workers = redis.call('SCARD', K.workers)
  return total / busy * (workers > 0 and workers or tonumber(seen[3]) or 1)
end
