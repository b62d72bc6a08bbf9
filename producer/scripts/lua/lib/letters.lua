--@offers dead_letter MAX_LETTER_BYTES
-- Dead letters are for people: the newest, bounded in number and in bytes; bodies are cut at 64 kB.
-- `letters` holds how many bytes they may have (`limit`) and, exactly, how many letters and bytes
-- there are. Where the stream's length is another, somebody else has added or deleted letters, or
-- a release that did not count: then they are counted anew.
local MAX_LETTERS, LIMIT_BYTES, MAX_LETTER_BYTES, PAGE = 10000, 33554432, 65536, 16

local function size_of(fields)
  local size = 0
  for _, text in ipairs(fields) do
    size = size + #text
  end
  return size
end

-- Count from the newest on, and cut off what lies past the bound: what is read is bounded too.
local function recount(limit)
  local count, bytes, bound = 0, 0, '+'
  while true do
    local page = redis.call('XREVRANGE', K.dead, bound, '-', 'COUNT', PAGE)
    for _, letter in ipairs(page) do
      local size = size_of(letter[2])
      if bytes + size > limit or count == MAX_LETTERS then
        redis.call('XTRIM', K.dead, 'MINID', bound == '+' and letter[1] or string.sub(bound, 2))
        return count, bytes
      end
      count, bytes, bound = count + 1, bytes + size, '(' .. letter[1]
    end
    if #page < PAGE then
      return count, bytes
    end
  end
end

local function dead_letter(job, tenant, finish, body, at, named)
  local fields = { 'job', job, 'tenant', tenant, 'finish', finish, 'body',
    string.sub(body, 1, MAX_LETTER_BYTES), 'at', string.format('%.0f', at) }
  if named and named ~= '' then
    fields[#fields + 1], fields[#fields + 2] = 'named', named
  end
  local known = redis.call('HMGET', K.letters, 'limit', 'count', 'bytes')
  local limit = tonumber(known[1]) or LIMIT_BYTES
  local count, bytes = tonumber(known[2]) or 0, tonumber(known[3]) or 0
  if redis.call('XLEN', K.dead) ~= count then
    count, bytes = recount(limit)
  end
  redis.call('XADD', K.dead, '*', unpack(fields))
  count, bytes = count + 1, bytes + size_of(fields)
  while count > 1 and (bytes > limit or count > MAX_LETTERS) do
    local oldest = redis.call('XRANGE', K.dead, '-', '+', 'COUNT', 1)[1]
    redis.call('XDEL', K.dead, oldest[1])
    count, bytes = count - 1, bytes - size_of(oldest[2])
  end
  redis.call('HSET', K.letters, 'count', count, 'bytes', string.format('%.0f', bytes))
end
