--@offers drained drain_opens drain_rate
-- The rate at which the backlog drains, in tokens per ms: tokens pulled over the time in which work
-- waited, both forgotten with a time constant of 20 s. Only what is pulled from a backlog that an
-- earlier pull has left behind counts, over the time since that pull: where a pull takes all there
-- is, it tells how fast jobs arrive, not how fast they could be done.
local DRAIN_TAU_MS = 20000

-- `still_waiting` is whether this pull leaves work behind.
local function drained(tokens, now, still_waiting)
  local seen = redis.call('HMGET', K.drain, 'at', 'tokens', 'busy', 'open')
  local total, busy = tonumber(seen[2]) or 0, tonumber(seen[3]) or 0
  if seen[4] == '1' then
    local decay = math.exp(-math.max(0, now - (tonumber(seen[1]) or now)) / DRAIN_TAU_MS)
    total, busy = total * decay + tokens, busy * decay + DRAIN_TAU_MS * (1 - decay)
  end
  redis.call('HSET', K.drain, 'at', now, 'tokens', string.format('%.3f', total),
    'busy', string.format('%.3f', busy), 'open', still_waiting and 1 or 0)
end

-- Backlog begins: no pull has left it behind.
local function drain_opens(now)
  redis.call('HSET', K.drain, 'at', now, 'open', 0)
end

-- nil until half a second of backlog was seen.
local function drain_rate()
  local seen = redis.call('HMGET', K.drain, 'tokens', 'busy')
  local busy = tonumber(seen[2]) or 0
  local total = tonumber(seen[1]) or 0
  if busy < 500 or total <= 0 then
    return nil
  end
  return total / busy
end
