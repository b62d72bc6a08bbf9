--@offers add_later forget_later
-- Tokens, those in prompts, and number of delayed jobs by the minute in which they are due: before it they are no
-- backlog, though they count against the bounds of the queue. Minutes that have passed count for
-- nothing, so it does not matter who releases what was due in them.
local MINUTE_MS, DAY_MS = 60000, 86400000

local function minute_of(due_ms)
  return string.format('%.0f', math.floor(due_ms / MINUTE_MS))
end

local function add_later(due_ms, tokens, prompt, now)
  local minute = minute_of(due_ms)
  redis.call('HINCRBY', K.later, 'tokens:' .. minute, tokens)
  redis.call('HINCRBY', K.later, 'prompts:' .. minute, prompt)
  redis.call('HINCRBY', K.later, 'jobs:' .. minute, 1)
  local rest_ms = due_ms - now + DAY_MS
  if redis.call('PTTL', K.later) < rest_ms then
    redis.call('PEXPIRE', K.later, string.format('%.0f', rest_ms))
  end
end

-- Forget a job of so many tokens that waits no more, or without a number all of that minute.
local function forget_later(due_ms, tokens, prompt)
  local minute = minute_of(due_ms)
  if not tokens then
    redis.call('HDEL', K.later, 'tokens:' .. minute, 'prompts:' .. minute, 'jobs:' .. minute)
  elseif redis.call('HEXISTS', K.later, 'jobs:' .. minute) == 1 then
    redis.call('HINCRBY', K.later, 'tokens:' .. minute, -tokens)
    redis.call('HINCRBY', K.later, 'prompts:' .. minute, -prompt)
    redis.call('HINCRBY', K.later, 'jobs:' .. minute, -1)
  end
end
