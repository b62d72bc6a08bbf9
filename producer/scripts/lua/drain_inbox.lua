#!lua flags=allow-oom
--@args worker count:number lease_ms max_bytes:number
--@use base: now_ms dead_letter failure
--@use ending: tombstone
-- Read the oldest raw entries. One worker drains at a time: the others would validate the same.
local drainer = redis.call('GET', K.intake)
if drainer and drainer ~= worker then
  return {}
end
local out, total, after = {}, 0, '-'
while #out < count and total < max_bytes do
  local read = redis.call('XRANGE', K.inbox, after, '+', 'COUNT', 1)[1]
  if not read then
    break
  end
  after = '(' .. read[1]
  local body = ''
  for i = 1, #read[2], 2 do
    if read[2][i] == 'job' then
      body = read[2][i + 1]
    end
  end
  if #body > max_bytes then
    local now = now_ms()
    local job = 'raw-' .. read[1]
    local finish = failure('invalid_request', 'job',
      'the request has ' .. #body .. ' bytes, the most is ' .. max_bytes)
    redis.call('XDEL', K.inbox, read[1])
    dead_letter(job, '', finish, body, now)
    out[#out + 1] = { read[1], '', tombstone(job, finish, now) }
  else
    total = total + #body
    out[#out + 1] = { read[1], body, false }
  end
end
if #out > 0 then
  redis.call('SET', K.intake, worker, 'PX', lease_ms)
end
return out
