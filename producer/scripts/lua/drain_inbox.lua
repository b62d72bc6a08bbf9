#!lua flags=allow-oom
--@args worker count:number lease_ms max_bytes:number nonce
--@use base: now_ms failure
--@use letters: dead_letter
--@use ending: tombstone
-- Read the oldest raw entries. One worker drains at a time: the others would validate the same. A
-- worker of version 1, which would refuse what it cannot read, makes way for one of this release.
local drainer = redis.call('GET', K.intake)
if drainer and drainer ~= worker and redis.call('SISMEMBER', K.workers1, drainer) == 0 then
  return {}
end
local out, total, after = {}, 0, '-'
while #out < count and total < max_bytes do
  local read = redis.call('XRANGE', K.inbox, after, '+', 'COUNT', 1)[1]
  if not read then
    break
  end
  after = '(' .. read[1]
  local body, reply = '', ''
  for i = 1, #read[2], 2 do
    if read[2][i] == 'job' then
      body = read[2][i + 1]
    elseif read[2][i] == 'reply' then
      reply = string.sub(read[2][i + 1], 1, 256)
    end
  end
  if #body > max_bytes then
    local now = now_ms()
    -- The nonce is the caller's secret, so that nobody can guess the name.
    local job = 'refused-' .. string.sub(redis.sha1hex(nonce .. read[1]), 1, 24)
    local finish = failure('invalid_request', 'job',
      'the request has ' .. #body .. ' bytes, the most is ' .. max_bytes)
    redis.call('XDEL', K.inbox, read[1])
    local is_secret = string.find(body, 'cache_secret', 1, true)
    dead_letter(job, '', finish, is_secret and '(left out: it holds a secret)' or body, now)
    out[#out + 1] = { read[1], '', reply, tombstone(job, finish, now) }
  else
    total = total + #body
    out[#out + 1] = { read[1], body, reply, false }
  end
end
if drainer ~= worker or redis.call('PTTL', K.intake) < lease_ms / 2 then
  redis.call('SET', K.intake, worker, 'PX', lease_ms)
end
return out
