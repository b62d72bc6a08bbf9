#!lua flags=allow-oom
--@use tail
-- Log tokens and publish them. Compared are epoch and `to` of the log's last entry, never its id.
return each(9, function(job, epoch, choice, from, to, text, ids, ends, logprobs)
  local log = L.log .. job
  local tail = tail_of(log)
  if not tail then
    return answer('nolog')
  end
  local mine = tonumber(epoch)
  if tail.ended then
    return answer(tail.epoch == mine and 'already' or 'fenced', tail)
  end
  if tail.epoch ~= mine then
    return answer(tail.epoch > mine and 'fenced' or 'behind', tail)
  end
  if tail.to >= tonumber(to) then
    return answer('already', tail)
  end
  if tail.to + 1 ~= tonumber(from) then
    return answer('gap', tail)
  end
  local message = '{"v":1,"job":"' .. job .. '","epoch":' .. epoch .. ',"choice":' .. choice
    .. ',"from":' .. from .. ',"to":' .. to .. ',"text":' .. text .. ',"ids":[' .. ids
    .. '],"ends":[' .. ends .. ']'
  if logprobs == '' then
    redis.call('XADD', log, epoch .. '-' .. to, 'choice', choice, 'from', from, 'to', to,
      'text', text, 'ids', ids, 'ends', ends)
  else
    redis.call('XADD', log, epoch .. '-' .. to, 'choice', choice, 'from', from, 'to', to,
      'text', text, 'ids', ids, 'ends', ends, 'logprobs', logprobs)
    message = message .. ',"logprobs":' .. logprobs
  end
  redis.call('PEXPIRE', log, BELT_MS)
  redis.call(PUBLISH, L.tok .. job, message .. '}')
  return { 'ok', mine, tonumber(to), '' }
end)
