--@offers begin
--@use tail: tail_of answer
--@use commit: commit
--@use telling: tell_beginning
-- Create a log with what there is of a job that the engine has started from nothing: the marker of a
-- takeover, which says beside the worker which of its starts this is, so that a call which is made
-- again knows its own log; tokens; and the end, if the job is over. Where a log is, or the result of a
-- completed job in its place, say what stands.
--
-- An item is address, epoch, start, last index, the client's channel, `head`, finish and result as
-- in `commit` (empty without an end), then id, entry and message of each entry. `told` is nothing, or
-- chat and last fields of a job whose answers are messages, each perhaps empty, and perhaps behind
-- them the number of tokens of its prompt.
local ENTRIES = 9

local function what_stands(log, epoch, worker, start)
  local tail = tail_of(log)
  if tail.ended then
    return answer('terminal', tail)
  end
  if tail.epoch > epoch then
    return answer('fenced', tail)
  end
  local marker = redis.call('XRANGE', log, '-', '+', 'COUNT', 1)[1][2]
  local is_own = tail.epoch == epoch and marker[2] == worker and marker[6] == start
  return answer(is_own and 'already' or 'log', tail, log)
end

-- Returns nothing where all was written.
local function begin(publish, belt_ms, worker, item, told)
  local job, epoch, start, listen, finish = item[1], item[2], item[3], item[5], item[7]
  local log, channel = L.log .. job, L.tok .. job
  if redis.call('EXISTS', log, L.result .. job) > 0 then
    return what_stands(log, epoch, worker, start)
  end
  local chat, last_fields = told and told[1] or '', told and told[2] or ''
  local marker = { 'marker', worker, 'to', 0, 'start', start }
  tell_beginning(marker, chat, told and told[3])
  redis.call('XADD', log, epoch .. '-0', unpack(marker))
  for at = ENTRIES, #item, 3 do
    local message = item[at + 2]
    redis.call('XADD', log, item[at], 'e', item[at + 1])
    redis.call(publish, channel, message)
    if listen ~= '' then
      redis.call(publish, L.cli .. listen, message)
    end
  end
  if finish ~= '' then
    commit(publish, belt_ms, job, epoch, item[4], finish, item[8], item[6], listen, last_fields)
  else
    redis.call('PEXPIRE', log, belt_ms)
  end
end
