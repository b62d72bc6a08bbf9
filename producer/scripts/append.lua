#!lua flags=allow-oom
--@use tail
-- Log tokens and publish them. Compared are epoch and `to` of the log's last entry, never its id.
return each(function(job, epoch, choice, from, to, text, ids, ends, logprobs)
  local log = L.log .. job
  local tail = tail_of(log)
  if not tail then
    return answer('nolog')
  end
  if tail.ended then
    return answer(tail.epoch == epoch and 'already' or 'fenced', tail)
  end
  if tail.epoch ~= epoch then
    return answer(tail.epoch > epoch and 'fenced' or 'behind', tail)
  end
  if tail.to >= to then
    return answer('already', tail)
  end
  if tail.to + 1 ~= from then
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
  -- The marker gave the log its belt; renewing it now and then is enough, and costs less.
  if math.floor(to / 256) > math.floor(tail.to / 256) then
    redis.call('PEXPIRE', log, BELT_MS)
  end
  redis.call(PUBLISH, L.tok .. job, message .. '}')
  return { 'ok', epoch, to, '' }
end)
