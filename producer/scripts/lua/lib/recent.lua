--@offers note_ended write_ended
--@use stamps: stamped
-- Jobs that have ended, the newest last and a bounded number of them, each with what it came to and
-- its timeline, and without a word of its text. What one call completes is written at once.
local FORM, MAX_ENDED, SLACK, BELT_MS = 1, 2000, 100, 604800000
local rows = {}

-- `record` is owner, tenant, priority, attempts, created and stamps of a job's record; `lived` is
-- what its owner tells, and of an error the code alone is kept.
local function note_ended(job, record, finish, counts, lived, now)
  local reason = string.match(finish, '^{"reason":"(%a+)"') or ''
  local code = reason == 'failed' and string.match(finish, '"error":{"code":"([%w_.-]+)"') or ''
  local owner, tenant, priority, attempts, created, stamps = unpack(record, 1, 6)
  rows[#rows + 1] = cmsgpack.pack({ FORM, job, tenant or '', tonumber(priority) or 1,
    tonumber(created) or now, now, reason, code, counts[1], counts[2], counts[3],
    tonumber(attempts) or 0, owner or '', stamped(stamps or nil, lived, 'e', now) })
end

local function write_ended()
  if #rows == 0 then
    return
  end
  local count = redis.call('RPUSH', K.recent, unpack(rows))
  if count > MAX_ENDED + SLACK then
    redis.call('LPOP', K.recent, count - MAX_ENDED)
  end
  if count == #rows or count > MAX_ENDED + SLACK then
    redis.call('PEXPIRE', K.recent, BELT_MS)
  end
  rows = {}
end
