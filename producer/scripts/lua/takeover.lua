#!lua flags=allow-oom
--@args belt_ms publish:unused batch
--@use tail: tail_of answer
--@use each: each
--@use telling: tell_beginning
-- Write the marker with which an owner starts and a reaper fences; it carries the last index. A
-- reaper learns whose entries stood there before its own marker: the epoch comes last in the answer.
-- The marker of an owner who begins from nothing says how many tokens the prompt has, and how the
-- answers are read, where they are messages: `chat`. Behind tokens it does not, because they are told
-- as their first owner has told them.
local function epoch_before(log)
  local before = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 2)[2]
  return before and tonumber(string.match(before[1], '^%d+')) or 0
end

return each(batch, function(job, epoch, worker, create, chat, prompt)
  local log = L.log .. job
  local tail = tail_of(log)
  if not tail and not create then
    return answer('nolog')
  end
  if tail and tail.ended then
    return answer('terminal', tail)
  end
  if tail and tail.epoch > epoch then
    return answer('fenced', tail)
  end
  if tail and tail.epoch == epoch then
    local found = answer('log', tail, log)
    if not create then
      found[6] = epoch_before(log)
    end
    return found
  end
  local last = tail and tail.to or 0
  local marker = { 'marker', worker, 'to', last }
  if last == 0 then
    tell_beginning(marker, chat, prompt)
  end
  redis.call('XADD', log, epoch .. '-0', unpack(marker))
  redis.call('PEXPIRE', log, belt_ms)
  return { 'ok', epoch, last, '', redis.call('XLEN', log), tail and tail.epoch or 0 }
end)
