--@offers note_ended write_ended
-- Jobs that have ended, the newest last and a bounded number of them, each with what it came to and
-- its timeline, and without a word of its text. What one call completes is written at once, and what
-- a reader can put together is left to it (`EndedJob.parse`).
local FORM, MAX_ENDED, SLACK, BELT_MS = 1, 2000, 100, 604800000
local rows = {}

-- `lived` is what its owner tells, `bound` how many tokens it might generate, 0 where that is not known; of
-- an error the code alone is kept.
local function note_ended(job, tenant, priority, created, finish, failed, prompt, cached, completion,
  attempts, owner, stamps, lived, now, bound)
  local code = failed == 1 and string.match(finish, '"error":{"code":"([%w_.-]+)"') or ''
  rows[#rows + 1] = cmsgpack.pack({ FORM, job, tenant, priority or '', created or '', now,
    string.match(finish, '^{"reason":"(%a+)"') or '', code, prompt, cached, completion,
    attempts or '', owner or '', stamps or '', lived or '', bound })
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
