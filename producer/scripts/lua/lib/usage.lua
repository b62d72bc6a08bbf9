--@offers count_usage
--@use base: whole
-- Tokens per tenant and hour, counted once per job by its completion.
local HOUR_MS, USAGE_TTL_MS = 3600000, 691200000

local function count_usage(tenant, finish, now)
  local ok, parsed = pcall(cjson.decode, finish)
  local used = ok and type(parsed) == 'table' and type(parsed.usage) == 'table' and parsed.usage or {}
  local key = K.usage .. math.floor(now / HOUR_MS)
  if redis.call('HINCRBY', key, tenant .. '|jobs', 1) == 1 then
    redis.call('PEXPIRE', key, USAGE_TTL_MS)
  end
  for _, name in ipairs({ 'prompt_tokens', 'cached_tokens', 'completion_tokens' }) do
    local tokens = whole(used[name], 1, 1e12)
    if tokens then
      redis.call('HINCRBY', key, tenant .. '|' .. name, string.format('%.0f', tokens))
    end
  end
end
