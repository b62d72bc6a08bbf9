#!lua flags=allow-oom
--@args belt_ms publish:unused batch
--@use tail: tail_of answer
--@use each: each
-- Write the marker with which an owner starts and a reaper fences; it carries the last index.
return each(batch, function(job, epoch, worker, create)
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
    return answer('log', tail, log)
  end
  local last = tail and tail.to or 0
  redis.call('XADD', log, epoch .. '-0', 'marker', worker, 'to', last)
  redis.call('PEXPIRE', log, belt_ms)
  return { 'ok', epoch, last, '', redis.call('XLEN', log) }
end)
