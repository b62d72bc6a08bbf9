-- The last entry of a token log, read in place of any counter: its fields are written in fixed
-- order, so the kind is the first name.
local function tail_of(log)
  local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)[1]
  if not last then
    return nil
  end
  local fields = last[2]
  local kind = fields[1]
  return {
    epoch = tonumber(string.match(last[1], '^(%d+)-')),
    to = tonumber(kind == 'marker' and fields[4] or fields[6]),
    ended = kind == 'finish',
    finish = kind == 'finish' and fields[2] or '',
  }
end

local function answer(status, tail)
  return { status, tail and tail.epoch or 0, tail and tail.to or 0, tail and tail.finish or '' }
end

local BELT_MS, PUBLISH = ARGV[1], ARGV[2]

-- Run `one` for every item of the batch, a JSON array of arrays: one argument is parsed far faster
-- than hundreds. An item that raises fails alone.
local function each(one)
  local out = {}
  for number, item in ipairs(cjson.decode(ARGV[3])) do
    local ok, reply = pcall(one, unpack(item))
    if not ok then
      reply = { 'error', 0, 0, type(reply) == 'table' and reply.err or tostring(reply) }
    end
    out[number] = reply
  end
  return out
end
