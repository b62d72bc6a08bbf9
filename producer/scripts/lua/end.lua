#!lua flags=allow-oom
--@args belt_ms publish batch
--@use tail: tail_of answer
--@use each: each
-- The commit point; `head` is what the job's messages begin with, up to the epoch: terminal entry and result value in one call. No short TTL here: the log must
-- outlive the record's way to `done`.
return each(batch, function(job, epoch, to, owned, finish, result, head)
  local log = L.log .. job
  local tail = tail_of(log)
  if owned then
    if not tail then
      return answer('nolog')
    end
    if tail.ended then
      return answer(tail.epoch == epoch and 'already' or 'fenced', tail)
    end
    if tail.epoch ~= epoch then
      return answer(tail.epoch > epoch and 'fenced' or 'behind', tail)
    end
  elseif tail and tail.ended then
    return answer('terminal', tail)
  elseif tail and tail.epoch > epoch then
    return answer('fenced', tail)
  end
  local at = tail and tail.to or 0
  if at ~= to then
    return answer('gap', tail)
  end
  redis.call('XADD', log, string.format('%d-%d', epoch, to + 1), 'finish', finish, 'from', to + 1,
    'to', to)
  redis.call('PEXPIRE', log, belt_ms)
  redis.call('SET', L.result .. job, result, 'PX', belt_ms)
  redis.call(publish, L.tok .. job, head .. epoch
    .. ',"choice":0,"from":' .. to + 1 .. ',"to":' .. to .. ',"text":"","ids":[],"ends":[],"finish":'
    .. finish .. '}')
  return { 'ok', epoch, to, finish, 0 }
end)
