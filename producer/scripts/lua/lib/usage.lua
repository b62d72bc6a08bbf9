--@offers add_usage
-- Tokens per tenant and hour, counted once per job by its completion.
local HOUR_MS, USAGE_TTL_MS = 3600000, 691200000

local function add_usage(tenant, jobs, prompt, cached, completion, now)
  local key = K.usage .. math.floor(now / HOUR_MS)
  if redis.call('HINCRBY', key, tenant .. '|jobs', jobs) == jobs then
    redis.call('PEXPIRE', key, USAGE_TTL_MS)
  end
  local used = { prompt_tokens = prompt, cached_tokens = cached, completion_tokens = completion }
  for _, name in ipairs({ 'prompt_tokens', 'cached_tokens', 'completion_tokens' }) do
    if used[name] > 0 then
      redis.call('HINCRBY', key, tenant .. '|' .. name, string.format('%.0f', used[name]))
    end
  end
end
