#!lua flags=allow-oom
--@args entry job finish body
--@use base: now_ms dead_letter
--@use ending: tombstone
-- Refuse a raw entry: dead letter now, and a failed event by way of `ending`.
if redis.call('XDEL', K.inbox, entry) == 0 then
  return false
end
if job == '' or redis.call('EXISTS', K.job .. job) == 1 then
  job = 'raw-' .. entry
end
local now = now_ms()
dead_letter(job, '', finish, body, now)
return tombstone(job, finish, now)
