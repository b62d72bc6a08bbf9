#!lua flags=allow-oom
--@use base ending
-- Refuse a raw entry: dead letter now, and a failed event by way of `ending`.
local entry, job, finish, body = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
if redis.call('XDEL', K.inbox, entry) == 0 then
  return false
end
if job == '' or redis.call('EXISTS', K.job .. job) == 1 then
  job = 'raw-' .. entry
end
local now = now_ms()
dead_letter(job, '', finish, body, now)
return tombstone(job, finish, now)
