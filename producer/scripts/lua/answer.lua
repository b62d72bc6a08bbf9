#!lua flags=allow-oom
--@args belt_ms publish worker result_ms record_ms:number pool_bytes tenant_bytes shard:number batch done told:rest
--@keys pool shard
--@use tail: failed
--@use commit: tell tell_end
--@use beginning: begin what_stands first_entry
--@use completing: now record_of first_step keep_result settle drop_past_bounds
-- Whole answers of jobs that were started from nothing: told, kept and complete in one turn, for the logs
-- of one shard on the same server. What a begin and the completion behind it would leave is left, and
-- nobody can look in between, so no log is written that would go at once. A job that is not held by
-- `worker` at its epoch is begun as `begin` does it, and completed by whoever is told so.
--
-- `batch` and `told` are those of `begin`; `done` is a flat msgpack array, COLUMNS values a job. Answered
-- is for each job that was not simply written and completed what `begin` would answer, `ok` where it has
-- written; then as of `complete_many`.
local COLUMNS = 6
local messages = ARGV[told] and cmsgpack.unpack(ARGV[told])
local columns = cmsgpack.unpack(done)
local out, answered = {}, {}

local function note(number, reply)
  table.insert(reply, 1, number - 1)
  out[#out + 1], answered[number] = reply, true
end

local function complete(number, job, record, item)
  local at = (number - 1) * COLUMNS
  first_step(number, job, record, columns[at + 6], item[7], unpack(columns, at + 1, at + 5))
  keep_result(job, record, #item[8], record_ms)
  redis.call('PUBLISH', K.ended, job)
end

local function answer_one(number, item)
  local job, epoch = item[1], item[2]
  local record, more = record_of(job), messages and messages[number]
  local written = { 'ok', epoch, item[4], item[7], 0 }
  if record[1] ~= 'held' or record[2] ~= worker or tonumber(record[14]) ~= epoch or not record[12] then
    return begin(publish, belt_ms, worker, item, more) or written
  end
  local log = L.log .. job
  if redis.call('EXISTS', log, L.result .. job) > 0 then
    return what_stands(log, epoch, worker, item[3])
  end
  redis.call('SET', L.result .. job, item[8], 'PX', result_ms)
  for at = first_entry, #item, 3 do
    tell(publish, job, item[5], item[at + 2])
  end
  tell_end(publish, job, epoch, item[4], item[7], item[6], item[5], more and more[2])
  if not pcall(complete, number, job, record, item) then
    -- It stands, and its completion is tried again: until then it may take as long as that takes.
    redis.call('PEXPIRE', L.result .. job, belt_ms)
    redis.call('ZADD', K.ending, now, job)
    return written
  end
end

local items = cmsgpack.unpack(batch)
for number, item in ipairs(items) do
  local ok, reply = pcall(answer_one, number, item)
  if not ok or reply then
    note(number, ok and reply or failed(reply))
  end
end
for number in pairs(settle()) do
  if not answered[number] then
    local item = items[number]
    note(number, { 'ok', item[2], item[4], item[7], 0 })
  end
end
return { out, drop_past_bounds(shard, record_ms, pool_bytes, tenant_bytes) }
