#!lua flags=allow-oom
--@args is_paused:flag
--@use base: now_ms ring
--@use drain_rate: drain_opens
-- Let pulls take nothing from now on, or go on; returns since when they take nothing, '' if they do.
-- The rate at which the backlog drains is measured anew afterwards: no time of a pause counts.
local now, since = now_ms(), redis.call('GET', K.paused)
if is_paused and not since then
  since = string.format('%.0f', now)
  redis.call('SET', K.paused, since)
  drain_opens()
elseif since and not is_paused then
  redis.call('DEL', K.paused)
  drain_opens()
  ring()
  since = nil
end
return since or ''
