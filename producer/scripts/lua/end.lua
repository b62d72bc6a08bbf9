#!lua flags=allow-oom
--@args belt_ms publish batch
--@use tail: tail_of answer
--@use each: each
--@use commit: commit
-- End a job. An item names the channel of the client that submitted it behind the rest, if it has
-- one, and last what the terminal event tells of messages, if its answers are any.
return each(batch, function(job, epoch, to, owned, finish, result, head, listen, told)
  local tail = tail_of(L.log .. job)
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
  commit(publish, belt_ms, job, epoch, to, finish, result, head, listen, told)
  return { 'ok', epoch, to, finish, 0 }
end)
