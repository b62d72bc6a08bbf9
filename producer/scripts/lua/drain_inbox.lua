#!lua flags=allow-oom
--@args worker count:number lease_ms max_bytes:number nonce
--@use base: now_ms failure
--@use letters: dead_letter MAX_LETTER_BYTES
--@use ending: tombstone
--@use raw: raw_name
-- Read the oldest raw entries. One worker drains at a time: the others would validate the same. A
-- worker of version 1, which would refuse what it cannot read, makes way for one of this release.
local drainer = redis.call('GET', K.intake)
if drainer and drainer ~= worker and redis.call('SISMEMBER', K.workers1, drainer) == 0 then
  return {}
end
local out, total = {}, 0

local function take(stream, id, fields)
  local body, reply = '', ''
  for i = 1, #fields, 2 do
    if fields[i] == 'job' then
      body = fields[i + 1]
    elseif fields[i] == 'reply' then
      reply = string.sub(fields[i + 1], 1, 256)
    end
  end
  local name = raw_name(stream, id)
  if #body <= max_bytes then
    total = total + #body
    out[#out + 1] = { name, body, reply, false }
    return
  end
  local now = now_ms()
  -- The nonce is the caller's secret, so that nobody can guess the name.
  local job = 'refused-' .. string.sub(redis.sha1hex(nonce .. name), 1, 24)
  local finish = failure('invalid_request', 'job',
    'the request has ' .. #body .. ' bytes, the most is ' .. max_bytes)
  redis.call('XDEL', stream, id)
  -- The field in any spelling, or letters that JSON escapes, which may spell it. Of a body of any
  -- size no more is looked at than a letter keeps: meanwhile the server answers nobody.
  local kept = string.sub(body, 1, MAX_LETTER_BYTES)
  local is_secret = string.find(string.lower(kept), 'cache.?secret')
    or string.find(kept, '\\u00[4-7]')
  dead_letter(job, '', finish, is_secret and '(left out: it holds a secret)' or kept, now)
  out[#out + 1] = { name, '', reply, tombstone(job, finish, now) }
end

for _, stream in ipairs({ K.inbox, K.inbox2 }) do
  local after = '-'
  while #out < count and total < max_bytes do
    local read = redis.call('XRANGE', stream, after, '+', 'COUNT', 1)[1]
    if not read then
      break
    end
    after = '(' .. read[1]
    take(stream, read[1], read[2])
  end
end
if drainer ~= worker or redis.call('PTTL', K.intake) < lease_ms / 2 then
  redis.call('SET', K.intake, worker, 'PX', lease_ms)
end
return out
