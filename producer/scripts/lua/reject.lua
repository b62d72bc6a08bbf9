#!lua flags=allow-oom
--@args entry job finish body named tenant
--@use base: now_ms
--@use letters: dead_letter
--@use ending: tombstone
--@use raw: raw_place
-- Refuse a raw entry under a name of its own: dead letter now, and a failed event by way of `ending`.
-- `named` is the address that the body asks for; it is not taken, and told whether it is free.
local inbox, raw = raw_place(entry)
if redis.call('XDEL', inbox, raw) == 0 then
  return false
end
local now = now_ms()
dead_letter(job, tenant, finish, body, now, named)
local is_free = named ~= '' and redis.call('EXISTS', K.job .. named) == 0
return { tombstone(job, finish, now), is_free and 1 or 0 }
